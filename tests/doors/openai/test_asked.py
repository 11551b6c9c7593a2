"""What a request asks for if it says nothing of how."""

from __future__ import annotations

from d8mesh.doors.openai.asked import AskedOfModels


def test_an_answer_is_whole_and_all_of_the_request_counts_unless_something_else_is_said() -> None:
    asked = AskedOfModels(tasks=(), model="m")
    assert [asked.is_streamed, asked.has_usage, asked.has_functions, asked.is_base64] == [False] * 4
    assert asked.ignored == asked.echoes == ()
