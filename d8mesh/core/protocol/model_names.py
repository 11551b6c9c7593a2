"""Names of language models: which ones mean the same, and what a task wishes for.

Source: Ollama, ``types/model/name.go``: ``[host/][namespace/]model[:tag]``, any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

#: Before the name in `Group.model`: only a worker that has this model may run the task.
STRICT_MARK: Final = "="
_DEFAULT_HOST: Final = "registry.ollama.ai/"
_DEFAULT_NAMESPACE: Final = "library/"
_DEFAULT_TAG: Final = ":latest"


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Return the one spelling of all that mean the same model: ``M``, ``library/m:latest``, …"""
    plain = name.strip().lower().removeprefix(_DEFAULT_HOST).removeprefix(_DEFAULT_NAMESPACE)
    has_tag = ":" in plain.rpartition("/")[2]
    return plain if has_tag else plain + _DEFAULT_TAG


def matching(wished: str, models: Iterable[str]) -> str | None:
    """Return which of `models` is the one that is wished for; None: none is, or none is wished."""
    if not wished:
        return None
    plain = plain_name(wished)
    found = [name for name in models if name == wished or plain_name(name) == plain]
    return wished if wished in found else next(iter(found), None)


def wish_in(model: str) -> tuple[str, bool]:
    """Return the plain name that `Group.model` (not empty) wishes for first, and if it is a must.

    `core.protocol.wish` reads all of it.
    """
    first = model.partition(";")[0].partition("|")[0]
    return plain_name(first.removeprefix(STRICT_MARK)), model.startswith(STRICT_MARK)
