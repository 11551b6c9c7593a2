"""What was asked and answered at a door is in no file of the mesh soon after it was delivered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.nodes.broker import WIPE_S
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import kill, until

ASKED: Final = "MARK-OF-WHAT-WAS-ASKED"
ANSWERED: Final = "MARK-OF-WHAT-WAS-ANSWERED"
#: How long what was delivered may be found: the orchestrator's own time, and as much again and more
#: for a machine that is busy with other tests.
GONE_S: Final = 2.0 * WIPE_S + 6.0


def _answer(messages: Sequence[Any]) -> str:
    return " ".join([ANSWERED, "and so on"] * 3)


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(answer=_answer, num_parallel=8, tokens_per_s=2000)) as made:
        yield made


def _chat(mesh: LlmMesh, *, is_streamed: bool = False, key: str = "") -> bytes:
    headers = {"Idempotency-Key": key} if key else {}
    body = {"model": CHAT, "messages": [{"role": "user", "content": f"{ASKED} say more"}]}
    answered = mesh.post("/api/chat", {**body, "stream": is_streamed}, headers=headers)
    assert answered.status == 200, answered.body
    assert ANSWERED.encode() in answered.body
    return answered.body


def _found(folder: Path) -> list[str]:
    """Return the files that have something of what was said."""
    found = []
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue
        if ASKED.encode() in content or ANSWERED.encode() in content:
            found.append(str(path.relative_to(folder)))
    return found


def _newest(mesh: LlmMesh, count: int = 1) -> list[dict[str, Any]]:
    """Return the newest tasks of the door."""
    listed = mesh.get(f"/api/tasks?door=ollama&order=newest&limit={count}")
    tasks: list[dict[str, Any]] = json.loads(listed.body)["tasks"]
    return tasks


def _await_gone(mesh: LlmMesh) -> None:
    folder = mesh.running.folder
    until(lambda: not _found(folder), "no file that has something of what was said", GONE_S)


def test_whole_and_streamed_answers_are_gone_and_their_figures_stay(mesh: LlmMesh) -> None:
    _chat(mesh)
    _chat(mesh, is_streamed=True)
    _await_gone(mesh)
    for task in _newest(mesh, 2):
        assert (task["erased"], task["door"], task["state"]) == (True, "ollama", "completed")
        assert task["caller"].startswith("127.0.0.1")
        assert "output" not in task["result"]
        assert task["result"]["model"] == CHAT


def test_what_a_caller_left_behind_is_gone(mesh: LlmMesh) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": ASKED}], "stream": True}
    with mesh.opened("POST", "/api/chat", body) as response:
        assert response.readline()
    until(lambda: _newest(mesh)[0]["erased"], "that it was erased", GONE_S)
    _await_gone(mesh)


def test_while_the_journal_is_read_and_written_all_the_time_it_is_gone_as_soon(
    mesh: LlmMesh,
) -> None:
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            mesh.tasks()

    def write() -> None:
        while not is_over.is_set():
            mesh.post("/api/tasks/submit", {"type": "echo", "data": {"of": "another"}})

    with ThreadPoolExecutor(8) as pool:
        try:
            for each in (read, read, write, write):
                pool.submit(each)
            for chat in [pool.submit(_chat, mesh) for _ in range(40)]:
                chat.result()
            _await_gone(mesh)
        finally:
            is_over.set()


def test_a_broker_that_was_killed_before_the_log_was_wiped_wipes_it_after_its_start(
    mesh: LlmMesh,
) -> None:
    _chat(mesh)
    until(lambda: _newest(mesh)[0]["erased"], "that it was erased", GONE_S)
    kill(mesh.running.broker().process.pid)
    mesh.await_models()
    _await_gone(mesh)


def test_with_a_key_it_is_kept_for_who_asks_again(mesh: LlmMesh) -> None:
    first = json.loads(_chat(mesh, key="kept"))
    time.sleep(WIPE_S + 1.0)  # long enough for what is not kept
    assert _found(mesh.running.folder)
    kill(mesh.running.broker().process.pid)
    mesh.await_models()
    again = json.loads(_chat(mesh, key="kept"))
    assert again["message"] == first["message"]
