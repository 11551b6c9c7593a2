"""What is said of a call: its answers are JSON unless they say otherwise."""

from __future__ import annotations

from d8mesh.http.described import AboutCall, HttpReply


def test_an_answer_is_json_and_a_call_takes_no_body_unless_it_is_said() -> None:
    told = AboutCall(what="x", answers=(HttpReply(200, int),))
    assert (told.answers[0].media, told.body, told.query) == ("application/json", None, None)
