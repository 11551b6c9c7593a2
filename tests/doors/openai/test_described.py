"""What is said of OpenAI's calls is what they read."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from d8mesh.doors.openai.calls import CALLS
from d8mesh.doors.openai.chat_request import THINK_OF_EFFORT
from d8mesh.doors.openai.described import OPENAI_CALLS, Efforts
from tests.doors.every_door import ReadFields

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        "functions": [{"name": "f"}],
    },
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
}


@pytest.mark.parametrize("path", CALLS)
def test_the_fields_that_are_said_are_those_that_are_read(path: str) -> None:
    body = ReadFields({"model": "m:1b", **ASKED[path]})
    CALLS[path].asked(body)
    kind = OPENAI_CALLS[f"POST {path}"].body
    assert isinstance(kind, type)
    # A request has either of them, and their choices have two names.
    tools = {"tool_choice"} if "functions" in ASKED[path] else set()
    assert body.read | tools == set(kind.__struct_fields__)  # type: ignore[attr-defined]


def test_the_efforts_are_those_that_are_known() -> None:
    assert set(get_args(Efforts)) == set(THINK_OF_EFFORT)
