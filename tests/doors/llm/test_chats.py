"""Requests of language models as tasks, over a real mesh with stand-ins of Ollama."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.doors.llm.plain_door import ChatMesh, said


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatMesh]:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path_factory.mktemp("chats"), stack)
        mesh.standin = mesh.machine()
        yield mesh


def test_an_answer_is_streamed_while_it_is_said(one: ChatMesh) -> None:
    first, *pieces, last = one.lines(30)
    assert last == {"done": True}
    (task_id,) = first["tasks"]
    assert one.status(task_id)["state"] == "completed"
    assert len(said(pieces).split()) == 30
    assert pieces[-1]["reason"] == "stop"


def test_a_whole_answer_tells_who_gave_it(one: ChatMesh) -> None:
    with one.ask(5, stream=False) as asked:
        assert asked.status == 200
        body = asked.json()
        headers = asked.answer.headers
    assert [len(text.split()) for text in body["texts"]] == [5]
    assert headers["X-D8-Task"] == body["tasks"][0]
    assert headers["X-D8-Model"] == "m:1b"
    assert headers["X-D8-Fallback"] == "no"
    assert headers["X-D8-Machine"]


def test_several_answers_are_several_tasks(one: ChatMesh) -> None:
    lines = one.lines(4, n=3)
    assert len(set(lines[0]["tasks"])) == 3
    assert [len(said(lines, index).split()) for index in range(3)] == [4, 4, 4]
    assert lines[-1] == {"done": True}
