"""kill -9 of an orchestrator with a long queue: how long until tasks are done again."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import zmq

from bench.backlog import fill
from bench.findings import Findings
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.processes import kill_tree
from bench.progress import say
from bench.swarm import OneSlot
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import D8Error

LENGTHS: Final = (100_000, 1_000_000)
QUICK_LENGTHS: Final = (10_000,)
BACK_S: Final = 120.0
#: How often the simulated worker says HELLO while nobody answers.
HELLO_S: Final = 0.05
POLL_MS: Final = 5

BACK: Final = "Seconds from kill -9 (and start again at once)"
FIRST_HANDED: Final = "first task handed out"
FIRST_DONE: Final = "first task done, on disk"
HEALTHY: Final = "REST healthy"
MEMORY: Final = "Broker memory after the restart"


def column(length: int) -> str:
    """Return the column of that queue length."""
    return f"{length:,} queued"


def measure(plan: Plan) -> Findings:
    """Kill and start again, round by round."""
    found = Findings()
    found.note(
        "Launcher, broker and web process are killed at once; a supervisor would start the "
        "orchestrator again, here the bench does so at once. A waiting worker says HELLO every "
        f"{HELLO_S * 1000:.0f} ms."
    )
    for length in LENGTHS if plan.is_full else QUICK_LENGTHS:
        for turn in range(plan.rounds):
            say(f"recovery: {length:,} queued, round {turn + 1}")
            with mesh(workers=0) as running:
                with running.client() as client:
                    fill(client, length)
                crash(found, running, column(length))
    return found


def crash(found: Findings, running: Mesh, name: str) -> None:
    """Kill the orchestrator, start it again, and note when what is there again."""
    back = found.table(BACK, "s")
    begun = time.perf_counter()
    kill_tree(running.orchestrator.process.pid)
    running.restart_orchestrator()
    mesh_name = running.config.mesh
    worker = OneSlot(running.broker_port, running.server_key, mesh_name, "first-one")
    while not worker.handed:
        _turn(worker, begun)
    back.add(FIRST_HANDED, name, time.perf_counter() - begun)
    while not worker.done:
        _turn(worker, begun)
    back.add(FIRST_DONE, name, time.perf_counter() - begun)
    worker.socket.close(0)
    while not _is_healthy(running.url):
        time.sleep(0.005)
    back.add(HEALTHY, name, time.perf_counter() - begun)
    found.table(MEMORY, "MB").add("RSS", name, running.broker().rss_bytes() / 1e6)


def _turn(worker: OneSlot, begun: float) -> None:
    if time.perf_counter() - begun > BACK_S:
        raise D8Error(f"recovery: no task was done within {BACK_S:.0f} s")
    now = time.monotonic()
    if not worker.heartbeat_s and now >= worker.next_word:
        worker.hello(now)
        worker.next_word = now + HELLO_S
    if worker.socket.poll(POLL_MS, zmq.POLLIN):
        worker.hear()


def _is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError, KeyError, TypeError):
        return bool(ask(url, "/health")["status"] == "healthy")
    return False
