"""Names of language models: which ones mean the same, and what a task wishes for.

Source: Ollama, ``types/model/name.go``: ``[host/][namespace/]model[:tag]``, any case.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

#: Before the name in `Group.model`: only a worker that has this model may run the task.
STRICT_MARK: Final = "="
#: How alike a name must be to have been meant: of tags of one model one is always the nearest.
NAME_LIKENESS: Final = 0.75
TAG_LIKENESS: Final = 0.0
_DEFAULT_HOST: Final = "registry.ollama.ai/"
_DEFAULT_NAMESPACE: Final = "library/"
_DEFAULT_TAG: Final = ":latest"


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Return the one spelling of all that mean the same model: ``M``, ``library/m:latest``, …"""
    plain = name.strip().lower().removeprefix(_DEFAULT_HOST).removeprefix(_DEFAULT_NAMESPACE)
    has_tag = ":" in plain.rpartition("/")[2]
    return plain if has_tag else plain + _DEFAULT_TAG


def shown_name(name: str) -> str:
    """Return the shortest spelling, with its tag and its own capitals, as lists show it."""
    shown = name.strip()
    for default in (_DEFAULT_HOST, _DEFAULT_NAMESPACE):
        if shown.lower().startswith(default):
            shown = shown[len(default) :]
    return shown if ":" in shown.rpartition("/")[2] else shown + _DEFAULT_TAG


def matching(wished: str, models: Iterable[str]) -> str | None:
    """Return which of `models` is the one that is wished for; None: none is, or none is wished."""
    if not wished:
        return None
    plain = plain_name(wished)
    found = [name for name in models if name == wished or plain_name(name) == plain]
    return wished if wished in found else next(iter(found), None)


def nearest(wished: str, models: Iterable[str]) -> str:
    """Return which of `models` may have been meant by a name that none has; empty: none is like it.

    Another tag of the same model is nearer than any other name.
    """
    known = {plain_name(name): name for name in models}
    plain = plain_name(wished)
    if plain in known:
        return ""
    tags = sorted(name for name in known if _untagged(name) == _untagged(plain))
    likeness = TAG_LIKENESS if tags else NAME_LIKENESS
    near = difflib.get_close_matches(plain, tags or known, n=1, cutoff=likeness)
    if not near and (bare := {_untagged(name): name for name in sorted(known, reverse=True)}):
        near = [bare[each] for each in difflib.get_close_matches(_untagged(plain), bare, n=1)]
    return known[near[0]] if near else ""


def _untagged(plain: str) -> str:
    head, mark, last = plain.rpartition("/")
    return head + mark + last.partition(":")[0]


def wish_in(model: str) -> tuple[str, bool]:
    """Return the plain name that `Group.model` (not empty) wishes for first, and if it is a must.

    `core.protocol.wish` reads all of it.
    """
    first = model.partition(";")[0].partition("|")[0]
    return plain_name(first.removeprefix(STRICT_MARK)), model.startswith(STRICT_MARK)
