"""How events are written."""

from __future__ import annotations

from d8mesh.doors.openai.sse import COMMENT, STREAM_END, broken, data_of
from d8mesh.errors import BackendStalledError


def test_an_event_is_one_line_of_data_and_a_blank_one() -> None:
    assert data_of({"a": "x\ny"}) == b'data: {"a":"x\\ny"}\n\n'


def test_what_is_no_event_has_no_data() -> None:
    assert not COMMENT.startswith(b"data")
    assert STREAM_END == b"data: [DONE]\n\n"


def test_a_break_is_an_event_with_an_error() -> None:
    assert broken(BackendStalledError("x")).startswith(b'data: {"error":{"message":"x"')
