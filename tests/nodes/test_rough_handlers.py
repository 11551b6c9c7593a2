"""Handlers that do what nobody expects cost the worker neither a slot nor its place."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.worker.effects import Attempt
from d8mesh.edge.child import Child
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import TaskFailedError
from d8mesh.handlers import TaskContext
from d8mesh.nodes.worker import slots as slots_module
from d8mesh.nodes.worker.slots import Bell, Context, Slots
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
#: What a child's queue may hold of threads left over: a few frames that were on their way.
FEW = 50


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize("name", ["Faceless", "Nameless"])
def test_an_error_that_raises_when_it_is_looked_at_is_a_failure_and_costs_no_slot(
    mesh: Mesh, name: str, process: bool
) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    worker.register("faceless", process_handlers.faceless, process=process)
    mesh.run(worker)
    client = mesh.client(port)
    for _ in range(2):
        with pytest.raises(TaskFailedError) as caught:
            client.submit("faceless", {"name": name}, max_attempts=1).result(PATIENCE_S)
        assert name in str(caught.value.result["error"])


ATTEMPT = Attempt("link", "t", 60.0, True, "id", bytes(16), b"")


def once_forked(data: dict[str, Any]) -> int:
    """End twice; return how the copy ended: its exit code, or -1 if it lives on."""
    copy = os.fork()
    if copy == 0:
        if data["how"] == "raise":
            raise ValueError("in the copy")
        if data["how"] == "exit":
            sys.exit(3)
        return 0
    deadline = time.monotonic() + PATIENCE_S / 2
    while time.monotonic() < deadline:
        done, status = os.waitpid(copy, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(copy, 9)
    os.waitpid(copy, 0)
    return -1


async def once_forked_async(data: dict[str, Any]) -> int:
    return once_forked(data)


@needs_fork
@pytest.mark.parametrize("handler", [once_forked, once_forked_async])
def test_the_copy_of_a_worker_that_a_handler_forks_ends_when_the_handler_does(
    mesh: Mesh, handler: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=2)
    worker.register("forked", handler)
    mesh.run(worker)
    client = mesh.client(port)
    for how, code in {"return": 0, "exit": 3, "raise": 1}.items():
        assert client.submit("forked", {"how": how}).result(PATIENCE_S)["output"] == code
    assert "ValueError: in the copy" in capfd.readouterr().err


def test_what_a_thread_left_over_emits_into_nothing_piles_up_nowhere(tmp_path: Path) -> None:
    emitted = tmp_path / "emitted"
    child = Child("tests.nodes.process_handlers:leaves_a_flood")
    data = msgspec.msgpack.encode(str(emitted))
    child.tell([bytes(16), "id", 1, 60.0, "w", data, [True, None], None])
    try:
        until(emitted.exists)
        assert child.said.qsize() < FEW
    finally:
        child.kill()


def test_pieces_that_many_threads_emit_are_numbered_once_each_and_in_order() -> None:
    waker = Waker()
    slots = Slots(1, {}, "w", Bell(waker))
    context = Context(slots, ATTEMPT, time.monotonic())

    def emit(context: TaskContext) -> None:
        for _ in range(2000):
            context.emit(None)

    threads = [threading.Thread(target=emit, args=(context,)) for _ in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
        waker.close()
    assert [piece[3] for piece in slots.pieces] == list(range(16_000))


def has_waiting(slots: Slots, count: int) -> bool:
    return len(slots.pieces) >= count


def test_who_emits_faster_than_it_is_passed_on_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots_module, "MAX_EMIT_S", PATIENCE_S)
    waker = Waker()
    slots = Slots(1, {}, "w", Bell(waker))
    context = Context(slots, ATTEMPT, time.monotonic())
    pieces = 10
    chunk = bytes(slots_module.MAX_WAITING_PIECES_BYTES // 4)

    def emit() -> None:
        for _ in range(pieces):
            context.pass_on(chunk)

    emitter = threading.Thread(target=emit)
    emitter.start()
    taken: list[int] = []
    while len(taken) < pieces:
        until(partial(has_waiting, slots, min(4, pieces - len(taken))))
        came = slots.take_pieces()
        assert len(came) <= 4
        taken += [piece[3] for piece in came]
    emitter.join(PATIENCE_S)
    waker.close()
    assert taken == list(range(pieces))
