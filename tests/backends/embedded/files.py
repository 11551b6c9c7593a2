"""GGUF files for tests: heads made up, and the real model made an embedder."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d8mesh.backends.embedded import gguf

ALIGNMENT = 32
UINT32, TEXT, LIST = 4, 8, 9


def head(values: Mapping[str, object], *, version: int = 3) -> bytes:
    """Return the head of a GGUF file without tensors."""
    made = gguf.GGUF_MAGIC + struct.pack("<IQQ", version, 0, len(values))
    return made + b"".join(text(key) + value(each) for key, each in values.items())


def text(of: str) -> bytes:
    return struct.pack("<Q", len(of.encode())) + of.encode()


def value(of: Any) -> bytes:
    """Return a value with its type before it; whole numbers have 32 bits, lists hold texts."""
    if isinstance(of, str):
        return struct.pack("<I", TEXT) + text(of)
    if isinstance(of, list):
        return struct.pack("<IIQ", LIST, TEXT, len(of)) + b"".join(map(text, of))
    return struct.pack("<II", UINT32, of)


def make_embedder(source: Path, target: Path) -> None:
    """Write the model of `source` as one that pools its tokens into a vector."""
    content = source.read_bytes()
    with source.open("rb") as file:
        file.read(8)
        tensors, keys = struct.unpack("<QQ", file.read(16))
        for _ in range(keys):
            gguf._text(file, gguf.MAX_KEY_BYTES)
            gguf._value(file, struct.unpack("<I", file.read(4))[0], 0)
        for _ in range(tensors):
            gguf._text(file, gguf.MAX_KEY_BYTES)
            (dimensions,) = struct.unpack("<I", file.read(4))
            file.read(8 * dimensions + 4 + 8)
        end = file.tell()
    more = text("llama.pooling_type") + value(1)
    begun = gguf.GGUF_MAGIC + struct.pack("<IQQ", 3, tensors, keys + 1) + more + content[24:end]
    data = content[-(-end // ALIGNMENT) * ALIGNMENT :]
    target.write_bytes(begun + bytes(-len(begun) % ALIGNMENT) + data)
