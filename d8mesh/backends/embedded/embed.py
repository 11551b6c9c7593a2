"""Vectors of texts, made by llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.embedded.chat import LLAMA_CPP, posted, refused
from d8mesh.backends.embedded.process import ModelProcess
from d8mesh.backends.streaming import AnswerReader, parts, whole_number
from d8mesh.core.protocol.chat import EmbeddingRequest, Embeddings, Usage
from d8mesh.errors import BackendAnswerError

#: A thousand texts of 1,024 numbers, 20 characters each; a result must hold it.
MAX_VECTORS_BYTES: Final = 24 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _LlamaVectors:
    """The one line of the answer."""

    rows: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    ending: bool = True
    is_sign_of_life: bool = True


def embedded(process: ModelProcess, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
    """Return a vector for each text; see `Backend.embed`."""
    body: dict[str, object] = {"input": list(request.texts)}

    def lines(reader: AnswerReader[_LlamaVectors]) -> Iterator[bytes]:
        yield from posted(process, "/v1/embeddings", body, reader, max_line_bytes=MAX_VECTORS_BYTES)

    reader = AnswerReader(
        LLAMA_CPP,
        process.url,
        lines=lines,
        piece_of=_vectors,
        refused=partial(refused, is_must=True),  # vectors of different models cannot be compared
    )
    made = list(parts(reader, run))[-1]
    if len(made.rows) != len(request.texts):
        raise BackendAnswerError(
            f"{LLAMA_CPP} sent {len(made.rows)} embeddings for {len(request.texts)} texts"
        )
    vectors = tuple(_cut(row, request.dimensions) for row in made.rows)
    return Embeddings(vectors=vectors, model=process.model, usage=Usage(made.prompt_tokens))


def _cut(row: tuple[float, ...], dimensions: int | None) -> tuple[float, ...]:
    """Return the first numbers of a vector, of length 1 again."""
    if dimensions is None or dimensions >= len(row):
        return row
    length = math.hypot(*row[:dimensions]) or 1.0
    return tuple(number / length for number in row[:dimensions])


def _vectors(answer: Any) -> _LlamaVectors:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    vectors = tuple(tuple(map(float, row["embedding"])) for row in rows)
    return _LlamaVectors(vectors, whole_number((answer.get("usage") or {}).get("prompt_tokens")))
