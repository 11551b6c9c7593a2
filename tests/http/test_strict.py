"""What is no JSON, or JSON that some reader would take for something else, is refused."""

from __future__ import annotations

import pytest

from d8mesh.errors import InvalidTaskError
from d8mesh.http.strict import MAX_KEYS, parse_json, parse_lenient_json

BAD = {
    "empty": (b"", "not JSON"),
    "cut off": (b'{"a": ', "not JSON"),
    "trailing bytes": (b'{"a": 1} x', "not JSON"),
    "two values": (b"{}{}", "not JSON"),
    "byte order mark": ("\ufeff{}".encode(), "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "latin-1": (b'{"a": "\xf1"}', "not UTF-8"),
    "surrogates as bytes": (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    "lone surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "lone surrogate as a key": (b'{"\\uDFFF": 1}', "surrogate"),
    "nested 10,000 deep": (b"[" * 10_000 + b"]" * 10_000, "nested"),
    "objects 10,000 deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested"),
    "a million keys": (
        b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}",
        f"{MAX_KEYS}",
    ),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
    "duplicate inside": (b'{"x": [{"k": 1, "k": 1}]}', "'k' stands twice"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b'{"a": -Infinity}', "Infinity"),
    "a huge float": (b'{"a": 1e999}', "too large"),
    "100,000 digits": (b'{"a": ' + b"9" * 100_000 + b"}", "64 bits"),
    "65 bits": (b'{"a": 18446744073709551616}', "64 bits"),
    "too negative": (b'{"a": -9223372036854775809}', "64 bits"),
    "control character": (b'{"a": "\x00"}', "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "trailing comma": (b'{"a": 1,}', "not JSON"),
}


@pytest.mark.parametrize(("body", "why"), BAD.values(), ids=BAD.keys())
def test_bad_json_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(InvalidTaskError, match=why) as caught:
        parse_json(body)
    assert len(str(caught.value)) < 300


def test_good_json_is_taken() -> None:
    text = '{"a": [1, -2, 1.5, true, null], "ñ": "\\ud83d\\ude00", "max": 18446744073709551615}'
    assert parse_json(text.encode()) == {
        "a": [1, -2, 1.5, True, None],
        "ñ": "\U0001f600",
        "max": 2**64 - 1,
    }


def test_a_refused_integer_is_shown_whole_if_it_fits() -> None:
    with pytest.raises(InvalidTaskError, match=r"^the integer 18446744073709551616 is"):
        parse_json(b"[18446744073709551616]")
    with pytest.raises(InvalidTaskError, match=r"^the integer 9{24}… is"):
        parse_json(b"9" * 99)


def test_a_byte_order_mark_is_told_as_such() -> None:
    with pytest.raises(InvalidTaskError, match="byte order mark"):
        parse_json(b"\xef\xbb\xbf{}")


@pytest.mark.parametrize("name", sorted(BAD))
def test_the_lenient_one_bounds_all_that_costs(name: str) -> None:
    body, why = BAD[name]
    if "twice" in why or "surrogate" in why:
        parse_lenient_json(body)
    else:
        with pytest.raises(InvalidTaskError, match=why):
            parse_lenient_json(body)


def test_the_lenient_one_takes_the_last_of_two_and_mends_halves_of_pairs() -> None:
    body = b'{"a": 1, "b": {"a": 2, "a": 3}, "a": "x\\ud83d", "c": "\\ud83d\\ude00 \\ude00"}'
    assert parse_lenient_json(body) == {
        "a": "x\ufffd",
        "b": {"a": 3},
        "c": "\U0001f600 \ufffd",
    }
    assert parse_lenient_json(b'"\\ud83d\\ude00"') == "\U0001f600"
