"""A hundred open chats, twelve of them running, while an orchestrator's processes are killed."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from d8mesh.apps.orchestrators import ask
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import PATIENCE_S, child_running, kill, until

CHATS = 100
WORDS = 12
#: A chat takes a second: some run and most wait when the blow comes.
TOKENS_PER_S = 12.0
SAID = " ".join(f"w{n}" for n in range(WORDS))
OPENAI_PATH = "/v1/chat/completions"
TASK = re.compile(rb"[0-9a-v]{16}-\d+")


@pytest.fixture
def chats() -> Iterator[list[Chat]]:
    """Yield a list whose chats hang up at the end."""
    found: list[Chat] = []
    yield found
    for each in found:
        each.connection.close()


@pytest.fixture
def mesh() -> Iterator[LlmMesh]:
    machines = [machine(tokens_per_s=TOKENS_PER_S, num_parallel=4) for _ in range(3)]
    with llm_mesh(*machines) as made:
        yield made


@dataclass
class Chat:
    """One chat on a connection of its own: every second one is streamed."""

    number: int
    connection: socket.socket
    seen: bytearray = field(default_factory=bytearray)

    @property
    def is_streamed(self) -> bool:
        return self.number % 2 == 0

    @property
    def tasks(self) -> set[str]:
        """The tasks that its answer names."""
        return {each.decode() for each in TASK.findall(bytes(self.seen))}


def begun(mesh: LlmMesh, number: int, *, has_key: bool = True, path: str = OPENAI_PATH) -> Chat:
    """Begin a chat; an even one is streamed."""
    host, port = mesh.url.removeprefix("http://").split(":")
    content = json.dumps(question(is_streamed=number % 2 == 0)).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        + (f"Idempotency-Key: chat-{number}\r\n" if has_key else "")
        + "\r\n"
    )
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.sendall(head.encode() + content)
    return Chat(number, connection)


def question(*, is_streamed: bool) -> dict[str, Any]:
    message = {"role": "user", "content": f"say {WORDS} words"}
    bound = {"max_tokens": 10 * WORDS}  # Anthropic's door asks for one
    return {"model": CHAT, "messages": [message], "stream": is_streamed, **bound}


def read_to_the_end(chats: list[Chat]) -> None:
    """Read all answers, each until it is whole or its connection ends."""
    until_s = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        for each in chats:
            selector.register(each.connection, selectors.EVENT_READ, each)
        while selector.get_map():
            assert time.monotonic() < until_s
            for key, _ in selector.select(1.0):
                chat: Chat = key.data
                try:
                    part = chat.connection.recv(65_536)
                except ConnectionResetError:
                    part = b""
                chat.seen += part
                if not part or is_whole(bytes(chat.seen)):
                    selector.unregister(chat.connection)
                    chat.connection.close()


def is_whole(seen: bytes) -> bool:
    head, mark, body = seen.partition(b"\r\n\r\n")
    sized = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if sized is not None:
        return bool(mark) and len(body) >= int(sized[1])
    return body.endswith(b"0\r\n\r\n")


def begin_all(mesh: LlmMesh, chats: list[Chat]) -> None:
    """Begin all chats; return when each of them is a task, and some are being said."""
    chats += [begun(mesh, number) for number in range(CHATS)]

    until(
        lambda: sum(ask(mesh.url, "/api/stats")["tasks"].values()) >= CHATS, "a task for each chat"
    )
    until(lambda: sum(each.running for each in mesh.standins) >= 10, "chats being said")


def answered_again(mesh: LlmMesh, number: int, *, is_streamed: bool) -> tuple[str, str]:
    """Ask with the same key; return the task and what was said."""
    key: Mapping[str, str] = {"Idempotency-Key": f"chat-{number}"}
    body = question(is_streamed=is_streamed)
    answer = mesh.post("/v1/chat/completions", body, headers=key)
    assert answer.status == 200, answer.body
    if is_streamed:
        lines = [line[6:] for line in answer.body.decode().split("\n\n") if "data: {" in line]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        said = "".join(each.get("content") or "" for each in deltas)
    else:
        said = json.loads(answer.body)["choices"][0]["message"]["content"]
    return answer.headers["x-d8-task"], said


def all_have_ended_well(mesh: LlmMesh) -> None:
    until(
        lambda: ask(mesh.url, "/api/stats")["tasks"]["completed"] >= CHATS,
        "the end of all tasks",
    )


@pytest.mark.slow
def test_a_killed_launcher_has_all_chats_told_of_their_tasks_which_run_to_their_end(
    mesh: LlmMesh, chats: list[Chat]
) -> None:
    begin_all(mesh, chats)
    kill(mesh.running.orchestrator.process.pid)
    read_to_the_end(chats)
    told = {}
    for each in chats:
        if SAID.split()[-1].encode() in each.seen:
            continue  # it was over
        assert b"error" in each.seen, each.seen
        assert b"[DONE]" not in each.seen
        (task_id,) = each.tasks
        told[each.number] = task_id
    assert len(set(told.values())) == len(told) >= CHATS - 30
    mesh.running.restart_orchestrator()
    mesh.running.await_workers(3)
    all_have_ended_well(mesh)
    for number, task_id in told.items():
        assert ask(mesh.url, f"/api/tasks/status/{task_id}")["status"] == "completed"
        again = answered_again(mesh, number, is_streamed=number % 3 == 0)
        assert again == (task_id, SAID)


@pytest.mark.slow
def test_a_killed_broker_costs_no_open_chat_its_answer(mesh: LlmMesh, chats: list[Chat]) -> None:
    begin_all(mesh, chats)
    broker = child_running(mesh.running.orchestrator.process.pid, "_broker")
    assert broker is not None
    kill(broker)
    read_to_the_end(chats)
    for each in chats:
        assert b"error" not in each.seen, each.seen
        assert f"w{WORDS - 1}".encode() in each.seen
    assert all(each.running == 0 for each in mesh.standins)


@pytest.mark.slow
def test_a_killed_web_process_leaves_all_chats_to_be_asked_for_again(
    mesh: LlmMesh, chats: list[Chat]
) -> None:
    begin_all(mesh, chats)
    web = child_running(mesh.running.orchestrator.process.pid, "_web")
    assert web is not None
    kill(web)
    read_to_the_end(chats)
    mesh.running.await_workers(3)
    again = [answered_again(mesh, n, is_streamed=n % 3 == 0) for n in range(CHATS)]
    assert {said for _, said in again} == {SAID}
    assert len({task_id for task_id, _ in again}) == CHATS
