"""Compressed bodies: what they become, never more than is allowed of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import zstandard

from d8mesh.http.answers import CLOSES, Refusal

#: What a compressed body may become: as much as Ollama allows.
MAX_DECODED_BYTES: Final = 20 * 1024 * 1024
#: Memory that a reader of zstd must have at least (RFC 9659), and all that it is given.
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
#: Bytes of zstd that are read at a time: four of them may become 128 KiB.
_ZSTD_PART_BYTES: Final = 128
#: Formats of zlib: with the head of gzip, with its own, with none.
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def decoder_of(coding: str) -> Callable[[bytes], bytes] | None:
    """Return what undoes a Content-Encoding, or None for one that is not known.

    It refuses what is not of that coding, does not end, goes on after its end, or becomes more
    than MAX_DECODED_BYTES, and holds little more than those.
    """
    return _DECODERS.get(coding)


def _gzip(body: bytes) -> bytes:
    return _inflated(body, _GZIP)


def _deflate(body: bytes) -> bytes:
    """Take both that this name stands for: with the head that HTTP wants, and without."""
    has_head = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflated(body, _ZLIB if has_head else _RAW)


def _inflated(body: bytes, form: int) -> bytes:
    reader = zlib.decompressobj(form)
    try:
        found = reader.decompress(body, MAX_DECODED_BYTES + 1)
    except zlib.error as error:
        raise _undecoded(str(error)) from error
    _check(found, is_whole=reader.eof, follows=reader.unused_data)
    return found


def _zstd(body: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    parts, size, at = list[bytes](), 0, 0
    try:
        while at < len(body) and not reader.eof and size <= MAX_DECODED_BYTES:
            parts.append(reader.decompress(body[at : at + _ZSTD_PART_BYTES]))
            size += len(parts[-1])
            at += _ZSTD_PART_BYTES
    except zstandard.ZstdError as error:
        raise _undecoded(str(error)) from error
    found = b"".join(parts)
    _check(found, is_whole=reader.eof, follows=reader.unused_data + body[at:])
    return found


def _check(found: bytes, *, is_whole: bool, follows: bytes) -> None:
    if len(found) > MAX_DECODED_BYTES:
        told = f"the body becomes more than {MAX_DECODED_BYTES} bytes"
        raise Refusal("http.too_large", told, headers=CLOSES)
    if not is_whole:
        raise _undecoded("it does not end")
    if follows:
        raise _undecoded("something follows its end")


def _undecoded(why: str) -> Refusal:
    return Refusal("http.bad_request", f"the body is not of its Content-Encoding: {why[:200]}")


_DECODERS: Final = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
#: The names of the codings that are known.
CODINGS: Final = tuple(_DECODERS)
