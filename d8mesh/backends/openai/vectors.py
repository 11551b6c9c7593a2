"""Vectors in OpenAI's form: as numbers or base64, in any order."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any, Final

from d8mesh.backends.openai.answers import usage_of
from d8mesh.backends.streaming import rows_of
from d8mesh.core.protocol.chat import Usage
from d8mesh.errors import BackendAnswerError

#: A vector as JSON: 8,192 numbers, 24 characters each, on lines of their own.
VECTOR_BYTES: Final = 256 * 1024
#: All vectors of an answer, and what stands around them.
MAX_ASKED_VECTORS_BYTES: Final = 32 * 1024 * 1024
_AROUND_BYTES: Final = 64 * 1024


def vectors_bytes(count: int) -> int:
    """Return how long an answer with so many vectors may be."""
    return min(_AROUND_BYTES + count * VECTOR_BYTES, MAX_ASKED_VECTORS_BYTES)


def vectors_in(title: str, answer: Any, count: int) -> tuple[tuple[tuple[float, ...], ...], Usage]:
    """Return a vector for each of `count` texts, and what they took.

    Raises:
        BackendAnswerError: there are not so many, or they are none.
    """
    try:
        rows = rows_of(answer.get("data"))
        places = [row.get("index") for row in rows]
        if sorted(place for place in places if type(place) is int) == list(range(len(rows))):
            rows = tuple(sorted(rows, key=lambda row: row["index"]))
        vectors = tuple(_vector(row["embedding"]) for row in rows)
        usage = answer.get("usage")
        used = usage_of(usage.get("prompt_tokens") if isinstance(usage, dict) else 0)
    except (
        TypeError, LookupError, ValueError, AttributeError, struct.error, ArithmeticError,
        RecursionError,
    ) as error:  # fmt: skip
        raise BackendAnswerError(f"{title} sent something that is no embedding") from error
    if len(vectors) != count:
        raise BackendAnswerError(f"{title} sent {len(vectors)} embeddings for {count} texts")
    if not all(map(_is_sound, vectors)):
        raise BackendAnswerError(f"{title} sent an embedding that is empty or holds no numbers")
    return vectors, used


def _vector(told: Any) -> tuple[float, ...]:
    if isinstance(told, str):  # little-endian float32
        content = base64.b64decode(told, validate=True)
        return tuple(each for (each,) in struct.iter_unpack("<f", content))
    return tuple(math.nan if each is None else float(each) for each in told)


def _is_sound(vector: tuple[float, ...]) -> bool:
    return bool(vector) and all(map(math.isfinite, vector))
