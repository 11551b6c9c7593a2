"""The head of a GGUF file: what kind of model it holds, read without loading it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

GGUF_MAGIC: Final = b"GGUF"
#: Version 1 had 32-bit lengths; nothing reads it any more.
GGUF_VERSIONS: Final = (2, 3)
#: A head holds the whole vocabulary: the largest have 300,000 words and as many merges.
MAX_GGUF_ITEMS: Final = 4_000_000
MAX_GGUF_KEYS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535
#: A chat template; the longest known has 20 KB.
MAX_TEMPLATE_BYTES: Final = 1024 * 1024
#: Lists inside lists: none is known.
MAX_GGUF_DEPTH: Final = 4

#: ``struct`` letter by number of the type; 8 is a text, 9 a list.
_SCALARS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT: Final = 8
_LIST: Final = 9


class NotGgufError(ValueError):
    """The file is not a GGUF file, or it is damaged; the message says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """What the head of a file says; "" and 0 where it is silent."""

    architecture: str = ""
    #: tokens that it was trained with
    context_length: int = 0
    #: it was made to pool vectors of its tokens: it makes embeddings, and does not chat
    is_embedder: bool = False
    #: how messages become its prompt
    chat_template: str = ""


def read_head(path: Path) -> GgufHead:
    """Read what `path` says of its model.

    Raises:
        NotGgufError: it is no GGUF file, or cut off within its head.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise NotGgufError("is not a GGUF file")
        (version,) = _unpacked(file, "<I")
        if version not in GGUF_VERSIONS:
            raise NotGgufError(f"is a GGUF file of version {version}; known are 2 and 3")
        _, keys = _unpacked(file, "<QQ")
        if keys > MAX_GGUF_KEYS:
            raise NotGgufError("is a damaged GGUF file")
        found: dict[str, object] = {}
        for _ in range(keys):
            key = _text(file, MAX_KEY_BYTES)
            (kind,) = _unpacked(file, "<I")
            found[key] = _value(file, kind, 0)
    return _head_of(found)


def _head_of(found: dict[str, object]) -> GgufHead:
    architecture = _word(found.get("general.architecture"))
    length = found.get(f"{architecture}.context_length")
    pooling = found.get(f"{architecture}.pooling_type")
    return GgufHead(
        architecture=architecture,
        context_length=length if isinstance(length, int) else 0,
        is_embedder=isinstance(pooling, int) and pooling > 0,
        chat_template=_word(found.get("tokenizer.chat_template")),
    )


def _value(file: BinaryIO, kind: int, depth: int) -> object:
    """Read one value; of a list nothing is kept."""
    if kind in _SCALARS:
        return _unpacked(file, "<" + _SCALARS[kind])[0]
    if kind == _TEXT:
        return _text(file, MAX_TEMPLATE_BYTES)
    if kind != _LIST or depth == MAX_GGUF_DEPTH:
        raise NotGgufError("is a damaged GGUF file")
    inner, count = _unpacked(file, "<IQ")
    if count > MAX_GGUF_ITEMS:
        raise NotGgufError("is a damaged GGUF file")
    if inner in _SCALARS:
        _skip(file, count * struct.calcsize("<" + _SCALARS[inner]))
    elif inner == _TEXT:
        for _ in range(count):
            _skip(file, _unpacked(file, "<Q")[0])
    else:
        for _ in range(count):
            _value(file, inner, depth + 1)
    return None


def _text(file: BinaryIO, max_bytes: int) -> str:
    (size,) = _unpacked(file, "<Q")
    if size > max_bytes:
        raise NotGgufError("is a damaged GGUF file")
    return _exactly(file, size).decode("utf-8", "replace")


def _skip(file: BinaryIO, size: int) -> None:
    """Pass over `size` bytes; small ones are read, which does not empty the buffer."""
    if size > MAX_GGUF_ITEMS * 8:
        raise NotGgufError("is a damaged GGUF file")
    _exactly(file, size)


def _unpacked(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise NotGgufError("is a GGUF file that was cut off")
    return data


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
