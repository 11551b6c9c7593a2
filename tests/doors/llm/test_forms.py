"""What every form in which a door writes a growing answer must do."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.chat import Ending, Piece
from d8mesh.doors.llm.forms import StreamForm
from d8mesh.doors.openai.calls import CALLS
from d8mesh.errors import BackendStalledError

MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}
BODIES = {
    "/v1/chat/completions": {"model": "m", "stream": True, **MESSAGES},
    "/v1/completions": {"model": "m", "stream": True, "prompt": "hello"},
    "/v1/responses": {"model": "m", "stream": True, "input": "hello"},
}


def form_of(path: str) -> StreamForm:
    call = CALLS[path]
    assert call.form is not None
    return call.form(call.asked(BODIES[path]), 1)


@pytest.mark.parametrize("path", BODIES)
def test_a_whole_answer_tells_its_text_once_and_in_order(path: str) -> None:
    form = form_of(path)
    parts = [form.begin(["t-1"]), form.piece(0, Piece(text="one "), None)]
    parts += [form.piece(0, Piece(text="two", ending=Ending()), None), form.end()]
    written = b"".join(parts)
    assert written.index(b"one ") < written.index(b"two")
    assert form.media_type == "text/event-stream"
    assert form.comment.startswith(b":")
    assert form.comment.endswith(b"\n\n")


@pytest.mark.parametrize("path", BODIES)
def test_a_broken_answer_says_so_and_never_looks_complete(path: str) -> None:
    form = form_of(path)
    parts = [form.begin(["t-1"]), form.piece(0, Piece(text="one "), None)]
    written = b"".join([*parts, form.broken(BackendStalledError("lost (task t-1)"))])
    assert b"lost (task t-1)" in written
    assert b"[DONE]" not in written
    assert b'"finish_reason":"stop"' not in written
    assert b"response.completed" not in written
