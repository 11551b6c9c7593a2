"""The lines of a batch file: what is taken, and what is refused with which code."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from d8mesh.doors.batches import lines
from d8mesh.doors.batches.lines import LineFault, line_of, raw_lines

CHAT = "/v1/chat/completions"


def line(**changes: Any) -> bytes:
    whole = {
        "custom_id": "a",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": []},
    }
    return json.dumps({**whole, **changes}).encode()


def test_a_line_is_its_number_its_name_and_its_body() -> None:
    found = line_of(7, line(), CHAT)
    assert (found.number, found.custom_id, found.model) == (7, "a", "m")


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"", "line_too_long", None),
        (line(custom_id=None), "missing_required_parameter", "custom_id"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "url_mismatch", "url"),
        (line(body=[]), "invalid_type", "body"),
        (line(body={}), "missing_required_parameter", "body.model"),
    ],
)
def test_a_wrong_line_is_refused_with_its_code(raw: bytes, code: str, param: str | None) -> None:
    with pytest.raises(LineFault) as caught:
        line_of(1, raw, CHAT)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_lines_keep_their_numbers_beside_blank_ones_and_a_mark_of_the_encoding() -> None:
    stream = io.BytesIO(b"\xef\xbb\xbf{1}\r\n\n  \n{2}")
    assert list(raw_lines(stream)) == [(1, b"{1}"), (4, b"{2}")]


def test_a_line_that_is_too_long_is_passed_over_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "MAX_BATCH_LINE_BYTES", 10)
    assert list(raw_lines(io.BytesIO(b"x" * 35 + b"\nshort\n"))) == [(1, b""), (2, b"short")]
