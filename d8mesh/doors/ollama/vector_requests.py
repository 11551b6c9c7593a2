"""`/api/embed` and the old `/api/embeddings`: what their bodies ask, as tasks' data have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.doors.llm.chats import MAX_TASKS
from d8mesh.doors.ollama.options import options_in
from d8mesh.doors.ollama.values import (
    Fields,
    keep_alive_in,
    name_in,
    object_in,
    switch_in,
    text_in,
    unknown_model,
)
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_DIMENSIONS

#: Texts of one task, unless there are very many: a service is asked for so many at once, and the
#: tasks of a large request run on all machines that have the model.
TASK_TEXTS: Final = 64
_SHARED_BY_VECTORS: Final = frozenset({"keep_alive", "model", "options"})
_OF_TEXTS: Final = {"max_tokens": "num_predict", "temperature": "temperature"}
EMBED_FIELDS_KNOWN: Final = _SHARED_BY_VECTORS | {"dimensions", "input", "truncate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedVectors:
    """What an embed asks."""

    #: as it is spelled
    model: str
    texts: tuple[str, ...]
    #: what all tasks have beside their texts
    shared: Mapping[str, Any]
    #: the answer is of the old form
    is_old: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def datas(self) -> list[dict[str, Any]]:
        """The data of its tasks, in the order of the texts."""
        size = max(TASK_TEXTS, math.ceil(len(self.texts) / MAX_TASKS))
        return [
            {**self.shared, "input": list(self.texts[at : at + size])}
            for at in range(0, len(self.texts), size)
        ]


def embed_in(content: bytes) -> AskedVectors:
    """Return what the body of an embed asks.

    Raises:
        InvalidTaskError: it is not what it must be, in Ollama's words.
        ModelUnknownError: no model is named.
    """
    body = object_in(content)
    told = body.get("input", [])
    texts = [told] if isinstance(told, str) and told else told or []
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InvalidTaskError("invalid input type")
    more: dict[str, Any] = {}
    if "truncate" in body:
        more["truncate"] = switch_in(body, "truncate", default=True)
    if dimensions := body.get("dimensions", 0):
        if type(dimensions) is not int or not 0 < dimensions <= MAX_DIMENSIONS:
            raise InvalidTaskError(f"dimensions: expected 1 to {MAX_DIMENSIONS}")
        more["dimensions"] = dimensions
    return _asked_vectors(body, EMBED_FIELDS_KNOWN, texts, more)


def embeddings_in(content: bytes) -> AskedVectors:
    """Return what the body of an old embeddings asks; raises as `embed_in`."""
    body = object_in(content)
    prompt = text_in(body, "prompt")
    known = _SHARED_BY_VECTORS | {"prompt"}
    return _asked_vectors(body, known, [prompt] if prompt else [], {}, is_old=True)


def _asked_vectors(
    body: Fields,
    known: frozenset[str],
    texts: list[str],
    more: Mapping[str, Any],
    *,
    is_old: bool = False,
) -> AskedVectors:
    name = name_in(body, "model")
    if not name.strip():
        raise unknown_model("")
    options, kept = options_in(body), keep_alive_in(body)
    shared = {**more, **options.data} | ({} if kept is None else {"keep_alive": kept})
    # What only makes texts.
    dropped = [f"options.{name}" for field, name in _OF_TEXTS.items() if shared.pop(field, None)]
    unknown = tuple(sorted(field[:60] for field in body if field not in known))
    return AskedVectors(
        model=name,
        texts=tuple(texts),
        shared=shared,
        is_old=is_old,
        ignored=(*unknown, *options.ignored, *dropped),
    )
