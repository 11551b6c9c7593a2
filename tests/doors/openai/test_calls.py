"""The table of calls, as those who have no server use it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.calls import CALLS
from d8mesh.errors import InvalidTaskError
from d8mesh.nodes.client.groups import encode_data
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


FIELDS = (
    "best_of", "dimensions", "echo", "encoding_format", "frequency_penalty", "function_call",
    "functions", "input", "keep_alive", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "messages", "modalities", "model", "n", "options", "parallel_tool_calls",
    "prompt", "reasoning", "reasoning_effort", "repetition_penalty", "response_format", "seed",
    "stop", "stream", "stream_options", "suffix", "temperature", "think", "tool_choice", "tools",
    "top_k", "top_logprobs", "top_p", "truncate",
)  # fmt: skip
INNER = (
    "allowed_tools", "arguments", "content", "effort", "function", "function_call", "id",
    "image_url", "images", "include_usage", "json_schema", "mode", "name", "parameters", "role",
    "schema", "text", "tool_call_id", "tool_calls", "tools", "type", "url",
)  # fmt: skip
WORDS = (
    "", "m", "user", "assistant", "tool", "text", "image_url", "data:image/png;base64,aGk=", "{}",
    "function", "json_schema", "allowed_tools", "required", "high", "hello", "\ud83d\ude00", "5m",
)  # fmt: skip
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False),
    st.sampled_from(WORDS), st.text(max_size=5),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4)
    ),
    max_leaves=12,
)
GOOD: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
}


@pytest.mark.parametrize("path", CALLS)
@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), is_good=st.booleans())
def test_whatever_is_sent_is_taken_or_refused_with_a_reason(
    path: str, fields: dict[str, Any], is_good: bool
) -> None:
    body = {**GOOD, **fields} if is_good else fields
    try:
        asked = CALLS[path].asked(body)
    except InvalidTaskError:
        return
    assert 0 < len(asked.tasks) <= 128
    for task in asked.tasks:
        encode_data(dict(task.data))  # it can be sent
