"""Processes killed in the middle of real work: nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.orchestrators import ask
from d8mesh.nodes.client import Client, Task
from tests.end_to_end.processes import child_running, is_alive, kill, until

if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

TASKS = 5000
#: A dead worker's task must finish elsewhere within this (`docs/RELIABILITY.md`).
RERUN_S = 15.0


def submit_checked(client: Client, count: int) -> list[tuple[Task, str]]:
    datas: list[dict[str, Any]] = [
        {"n": n, "sha": hashlib.sha256(str(n).encode()).hexdigest()} for n in range(count)
    ]
    tasks = client.submit_many("echo", datas)
    return [(task, data["sha"]) for task, data in zip(tasks, datas, strict=True)]


def check_all(running: Mesh, tasks: list[tuple[Task, str]]) -> None:
    for task, sha in tasks:
        result = task.result(timeout=60)
        assert result["output"]["sha"] == sha
    totals = ask(running.url, "/api/stats")["tasks"]
    assert totals["completed"] == len(tasks)
    assert (totals["pending"], totals["assigned"], totals["failed"]) == (0, 0, 0)


def broker_of(running: Mesh) -> int:
    found: list[int] = []

    def look() -> bool:
        pid = child_running(running.orchestrator.process.pid, "_broker")
        found[:] = [pid] if pid is not None and is_alive(pid) else []
        return bool(found)

    until(look, "a broker process")
    return found[0]


def test_the_broker_killed_alone_comes_back_and_nothing_is_lost() -> None:
    with mesh(workers=2) as running, running.client() as client:
        workers = [child.process.pid for child in running.workers]
        tasks = submit_checked(client, TASKS)
        first = broker_of(running)
        kill(first)
        until(lambda: not is_alive(first), "the death of the broker")
        check_all(running, tasks)
        assert broker_of(running) != first
        assert [child.process.pid for child in running.workers] == workers
        assert all(child.is_running for child in running.workers)


def test_the_whole_group_killed_leaves_no_port_or_lock_behind(tmp_path: Path) -> None:
    with mesh(workers=2, folder=tmp_path) as running, running.client() as client:
        tasks = submit_checked(client, TASKS)
        launcher = running.orchestrator.process.pid
        group = [launcher, broker_of(running)]
        web = child_running(launcher, "_web")
        assert web is not None
        for pid in (*group, web):
            kill(pid)
        running.orchestrator.process.wait()
        again = running.children.start("orchestrator", "orchestrator")
        until(again.is_up.is_set, "the orchestrator's second start")
        assert again.is_running, list(again.lines)
        check_all(running, tasks)
        assert all(child.is_running for child in running.workers)


def test_children_end_when_their_launcher_dies() -> None:
    with mesh(workers=0) as running:
        launcher = running.orchestrator.process.pid
        broker, web = broker_of(running), child_running(launcher, "_web")
        assert web is not None
        kill(launcher)
        until(lambda: not is_alive(broker) and not is_alive(web), "the end of both", 10)


@pytest.mark.slow
def test_a_task_of_a_killed_worker_finishes_on_another(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with mesh(workers=0) as running, running.client() as client:
        arguments = ("worker", "--tasks", "tests.end_to_end.slow_tasks", "--slots", "1")
        for name in ("first", "second"):
            running.children.start(name, *arguments)
        until(lambda: ask(running.url, "/health")["workers_online"] == 2, "both workers")
        task = client.submit("slow", {"seconds": 3, "trace": str(trace)})
        until(lambda: trace.exists() and trace.read_text("utf-8"), "the start of the task")
        kill(int(trace.read_text("utf-8").split()[2]))
        killed = time.monotonic()
        assert task.result(timeout=60)["output"] == {"done": True}
        assert time.monotonic() - killed < RERUN_S + 3
        assert [line.split()[1] for line in trace.read_text("utf-8").splitlines()] == ["1", "2"]
