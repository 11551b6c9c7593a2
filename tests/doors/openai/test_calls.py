"""The table of calls, as those who have no server use it."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.calls import CALLS
from tests.doors.openai.said import CREATED, answered, vectors

BODIES: dict[str, tuple[dict[str, Any], LlmAnswer, str]] = {
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": "x"}]}, answered("y"), "chat.completion",
    ),
    "/v1/completions": ({"prompt": "x"}, answered("y"), "text_completion"),
    "/v1/embeddings": ({"input": "x"}, vectors((1.0,)), "list"),
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_a_body_becomes_tasks_and_their_answers_a_body(path: str) -> None:
    body, answer, kind = BODIES[path]
    asked = CALLS[path].asked({"model": "m", **body})
    assert [task.model for task in asked.tasks] == ["m"]
    assert CALLS[path].body(asked, [answer], CREATED)["object"] == kind


def test_vectors_never_grow() -> None:
    assert [path for path, call in CALLS.items() if call.form is None] == ["/v1/embeddings"]
