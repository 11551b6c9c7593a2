"""Quick attempts that are alone run on the worker's I/O thread, which no handler can keep."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.nodes.client import Client
from d8mesh.nodes.worker.slots import QUICK_IN_A_ROW, Slots
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until

IO_THREAD = "worker-io"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


class Handler:
    """Tells its thread; waits for `gate` if it is told to, and counts who is in it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, data: dict[str, Any]) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        if data.get("waits"):
            assert self.gate.wait(PATIENCE_S)
        with self._lock:
            self.inside -= 1
        return threading.current_thread().name


def started(mesh: Mesh, *, slots: int) -> tuple[Handler, Client]:
    """A worker whose handler has shown that it is quick."""
    port = mesh.broker()
    worker = mesh.worker(port, slots=slots)
    handler = Handler()
    worker.register("which", handler)
    mesh.run(worker)
    client = mesh.client(port)
    for _ in range(QUICK_IN_A_ROW * 50):  # on a busy machine a few are not quick
        if where(client) == IO_THREAD:
            break
    return handler, client


def where(client: Client, **data: Any) -> str:
    return str(client.submit("which", data).result(PATIENCE_S)["output"])


def test_a_lone_quick_attempt_runs_on_the_io_thread(mesh: Mesh) -> None:
    _, client = started(mesh, slots=2)
    assert any(where(client) == IO_THREAD for _ in range(QUICK_IN_A_ROW * 50))
    many = {task.result(PATIENCE_S)["output"] for task in client.submit_many("which", [{}] * 200)}
    assert IO_THREAD not in many


def test_the_handler_of_a_worker_with_one_slot_sees_one_thread(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    worker.register("which", Handler())
    mesh.run(worker)
    client = mesh.client(port)
    assert {where(client) for _ in range(QUICK_IN_A_ROW * 3)} == {"slot-0"}


def test_one_that_takes_its_time_after_all_stops_nothing_and_keeps_its_slot(mesh: Mesh) -> None:
    handler, client = started(mesh, slots=2)
    hanging = client.submit("which", {"waits": True})
    until(lambda: handler.inside == 1)
    waiting = [client.submit("which", {"waits": True}) for _ in range(3)]
    until(lambda: handler.inside == 2)  # the other slot works: somebody hands it out
    time.sleep(0.3)  # nothing to wait for: a third must not come
    assert handler.most == 2
    handler.gate.set()
    names = {task.result(PATIENCE_S)["output"] for task in (hanging, *waiting)}
    assert IO_THREAD in names
    assert handler.most == 2
    # Both slots are there again, and the I/O thread's successor is one like it.
    handler.gate.clear()
    both = [client.submit("which", {"waits": True}) for _ in range(2)]
    until(lambda: handler.inside == 2)
    handler.gate.set()
    assert all(task.result(PATIENCE_S) for task in both)
    assert any(where(client).startswith(IO_THREAD) for _ in range(QUICK_IN_A_ROW * 50))


def test_a_process_of_a_quick_type_is_a_slots(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []
    run = Slots._run

    def noted(self: Slots, *given: Any) -> None:
        served.append(threading.current_thread().name)
        run(self, *given)

    monkeypatch.setattr(Slots, "_run", noted)
    port = mesh.broker()
    worker = mesh.worker(port, slots=2)
    worker.register("which", Handler())
    mesh.run(worker)
    client = mesh.client(port)
    assert any(where(client) == IO_THREAD for _ in range(QUICK_IN_A_ROW * 50))
    worker.register("which", process_handlers.pid, process=True)
    assert where(client) != str(os.getpid())
    assert served[-1].startswith("slot-")
