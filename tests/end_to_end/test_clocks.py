"""Wall clocks that jump and machines that sleep, with real processes: nothing is lost,
nothing expires, nothing runs twice without need.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.orchestrators import ask
from d8mesh.nodes.client import Client, Task
from tests.end_to_end.processes import child_running, until

if sys.platform != "linux":
    pytest.skip("a process is shown another CLOCK_BOOTTIME", allow_module_level=True)

pytestmark = pytest.mark.slow

DAY_S = 86_400.0
#: Workers are lost after this much silence (`Policy.lease_s`).
LEASE_S = 10.0
#: Long enough for a worker to notice that an attempt has no time left.
TAKES_S = 2.5
ARGUMENTS = ("worker", "--tasks", "tests.end_to_end.slow_tasks", "--slots", "2")
SHIFTED = Path(__file__).parent / "shifted"
ROOT = Path(__file__).resolve().parents[2]


class Clocks:
    """The clocks of the processes of a mesh that is started after this."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._folder = folder
        monkeypatch.setenv("SHIFTED_CLOCKS", str(folder))
        monkeypatch.setenv("PYTHONPATH", f"{SHIFTED}:{ROOT}")

    def shift(self, role: str, *, ahead_s: float = 0.0, slept_s: float = 0.0) -> None:
        """Let the clocks of the brokers or the workers jump."""
        new = self._folder / "new"
        new.write_text(f"{ahead_s} {slept_s}", "ascii")
        new.replace(self._folder / role)


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(tmp_path / "clocks", monkeypatch)


def add_worker(running: Mesh, number: int) -> int:
    """Start a worker that offers slow tasks; return its process id once it is there."""
    worker = running.children.start(f"slow {number}", *ARGUMENTS)
    until(lambda: ask(running.url, "/health")["workers_online"] == number, "the worker")
    return worker.process.pid


def submit(client: Client, trace: Path, count: int, seconds: float, **options: Any) -> list[Task]:
    data = {"seconds": seconds, "trace": str(trace)}
    return client.submit_many("slow", [data] * count, **options)


def starts_in(trace: Path) -> list[str]:
    return trace.read_text("utf-8").splitlines() if trace.exists() else []


def check(running: Mesh, tasks: list[Task]) -> None:
    """All have the result that their handler gave, and none of them has failed."""
    for task in tasks:
        assert task.result(timeout=60)["output"] == {"done": True}
    totals = ask(running.url, "/api/stats")["tasks"]
    assert (totals["completed"], totals["failed"]) == (len(tasks), 0)


def test_wall_clocks_that_jump_lose_expire_and_repeat_nothing(
    tmp_path: Path, clocks: Clocks
) -> None:
    trace = tmp_path / "trace"
    with mesh(workers=0) as running, running.client() as client:
        tasks = submit(client, trace, 2, 0.2, run_at=time.time() + DAY_S / 2)
        for number, ahead_s in enumerate((DAY_S, -DAY_S, 365 * DAY_S, 0.0), 1):
            tasks += submit(client, trace, 4, TAKES_S, deadline_s=300)
            tasks += submit(client, trace, 12, 0.2)
            clocks.shift("broker", ahead_s=ahead_s)
            if number <= 2:  # the first ones are handed out after the jump ahead
                add_worker(running, number)
            clocks.shift("worker", ahead_s=-ahead_s)
            tasks[-1].result(timeout=60)
        check(running, tasks)  # the last two too: the broker has seen the day that was theirs
        assert len(starts_in(trace)) == len(tasks)


def test_a_worker_that_slept_is_lost_and_comes_back_and_nothing_is_lost_with_it(
    tmp_path: Path, clocks: Clocks
) -> None:
    trace = tmp_path / "trace"
    with mesh(workers=0) as running, running.client() as client:
        sleeper = add_worker(running, 1)
        tasks = submit(client, trace, 4, 1.0)
        until(lambda: len(starts_in(trace)) == 2, "two tasks in its slots")
        os.kill(sleeper, signal.SIGSTOP)
        clocks.shift("worker", slept_s=3600.0)
        until(lambda: ask(running.url, "/health")["workers_online"] == 0, "its loss")
        os.kill(sleeper, signal.SIGCONT)
        until(lambda: ask(running.url, "/health")["workers_online"] == 1, "its return")
        add_worker(running, 2)
        tasks += submit(client, trace, 8, 0.1)
        check(running, tasks)
        assert len({line.split()[0] for line in starts_in(trace)}) == len(tasks)


def test_a_broker_that_stood_still_blames_no_worker(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with mesh(workers=0) as running, running.client() as client:
        add_worker(running, 1)
        tasks = submit(client, trace, 2, 2.0, max_attempts=1) + submit(client, trace, 20, 0.1)
        until(lambda: len(starts_in(trace)) == 2, "two tasks in its slots")
        broker = child_running(running.orchestrator.process.pid, "_broker")
        assert broker is not None
        os.kill(broker, signal.SIGSTOP)
        time.sleep(LEASE_S * 1.5)  # nothing is waited for but that this time is over
        os.kill(broker, signal.SIGCONT)
        check(running, tasks)
        assert len(starts_in(trace)) == len(tasks)
