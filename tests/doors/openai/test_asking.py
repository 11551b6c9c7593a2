"""A call of the door beside a mesh; `test_routes` asks over a real socket."""

from __future__ import annotations

import json

import pytest

from d8mesh.core.protocol.messages import MAX_PAYLOAD_BYTES
from d8mesh.doors.openai.asking import CallAnswers
from d8mesh.doors.openai.calls import CALLS
from d8mesh.errors import InvalidTaskError
from tests.doors.llm_mesh import CHAT


def read(body: bytes) -> object:
    chats = None  # nothing is asked
    return CallAnswers(chats, CALLS["/v1/chat/completions"]).asked(body)  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"", b" \n", b"{", b"[]", b"5", b"\xff", b"{}"])
def test_what_is_no_request_is_refused_before_anything_is_asked(body: bytes) -> None:
    with pytest.raises(InvalidTaskError):
        read(body)


def test_of_a_key_that_stands_twice_the_last_one_counts() -> None:
    message = json.dumps([{"role": "user", "content": "x"}])
    asked = read(f'{{"model": "a", "model": "{CHAT}", "messages": {message}}}'.encode())
    assert getattr(asked, "model", "") == CHAT


def test_a_picture_of_some_megabytes_is_taken() -> None:
    picture = "A" * (MAX_PAYLOAD_BYTES // 4)
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    body = {"model": CHAT, "messages": [{"role": "user", "content": [part]}]}
    assert getattr(read(json.dumps(body).encode()), "model", "") == CHAT
