"""Check 38: a stream while a model loads for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doors.checks.openai_clients import chat_sent, events_of, official, text_of
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine

#: Far longer than the silence after which the head goes out, and a comment.
LOAD_S = 60.0
SAID = "You asked: hello there"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    patient = {"D8_FIRST_TOKEN_S": "120"}
    with llm_mesh(settings=patient) as made:
        with machine(loaded=[], load_s=LOAD_S, max_loaded=1) as standin:
            made.add(standin, settings=patient)
            made.await_models()
            yield made


def test_check_38_only_comments_come_before_the_answer(mesh: LlmMesh) -> None:
    answered = chat_sent(mesh, stream=True)
    before, _, _ = answered.body.partition(b"data:")
    lines = before.decode().split("\n")
    comments = [line for line in lines if line]
    assert comments
    assert all(line.startswith(": ") for line in comments)
    *chunks, _ = events_of(answered)
    assert text_of(chunks) == SAID
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [each["choices"][0]["finish_reason"] for each in chunks][-1] == "stop"


def test_check_38_the_official_client_waits_and_reads_the_answer(mesh: LlmMesh) -> None:
    with official(mesh) as client:
        chunks = client.chat.completions.create(
            model="v:1b", messages=[{"role": "user", "content": "hello there"}], stream=True
        )
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == SAID
    assert CHAT not in mesh.standins[0].loaded  # it had to make room: this one was loaded too
