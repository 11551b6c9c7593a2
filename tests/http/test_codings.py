"""What was compressed is what it was, or is refused; a small body cannot become a large one."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from d8mesh.http.answers import Refusal
from d8mesh.http.codings import CODINGS, MAX_DECODED_BYTES, decoder_of

TEXT = b'{"model": "m", "input": "hello"}' * 3000


def raw_deflate(body: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(body) + made.flush()


MADE_BY: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate, raw": raw_deflate,
    "zstd": zstandard.compress,
}


def decoded(name: str, body: bytes) -> bytes:
    decode = decoder_of(name.partition(",")[0])
    assert decode is not None
    return decode(body)


def refused(name: str, body: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        decoded(name, body)
    return caught.value.code


@pytest.mark.parametrize("name", MADE_BY)
@pytest.mark.parametrize("text", [b"", b"x", TEXT], ids=["nothing", "a byte", "much"])
def test_what_was_compressed_is_what_it_was(name: str, text: bytes) -> None:
    assert decoded(name, MADE_BY[name](text)) == text


def test_zstd_of_a_stream_that_did_not_know_its_length_is_read_too() -> None:
    made = zstandard.ZstdCompressor().compressobj()
    assert decoded("zstd", made.compress(TEXT) + made.flush()) == TEXT


@pytest.mark.parametrize("name", MADE_BY)
def test_what_is_cut_goes_on_or_is_something_else_is_refused(name: str) -> None:
    made = MADE_BY[name](TEXT)
    assert refused(name, made[:-1]) == "http.bad_request"
    assert refused(name, made[: len(made) // 2]) == "http.bad_request"
    assert refused(name, made + b"x" * 300) == "http.bad_request"
    assert refused(name, made + made) == "http.bad_request"
    assert refused(name, b"\xff" * 300) == "http.bad_request"


@pytest.mark.parametrize("name", MADE_BY)
def test_as_much_as_is_allowed_passes_and_a_byte_more_does_not(name: str) -> None:
    assert len(decoded(name, MADE_BY[name](bytes(MAX_DECODED_BYTES)))) == MAX_DECODED_BYTES
    assert refused(name, MADE_BY[name](bytes(MAX_DECODED_BYTES + 1))) == "http.too_large"


@pytest.mark.parametrize("name", MADE_BY)
def test_a_bomb_costs_little_more_than_what_is_allowed(name: str) -> None:
    bomb = MADE_BY[name](bytes(400_000_000))
    tracemalloc.start()
    began = time.process_time()
    assert refused(name, bomb) == "http.too_large"
    spent_s, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * MAX_DECODED_BYTES
    assert spent_s < 5.0


def test_zstd_that_wants_more_memory_than_a_reader_must_have_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    made = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = made.compress(bytes(1000)) + made.flush()
    assert refused("zstd", body) == "http.bad_request"


def test_other_codings_are_not_known() -> None:
    assert CODINGS == ("gzip", "x-gzip", "deflate", "zstd")
    for name in ("identity", "br", "gzip, gzip", ""):
        assert decoder_of(name) is None
