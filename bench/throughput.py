"""Durable no-op tasks per second, end to end, beside the raw loop, alternating in one run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import raw
from bench.mesh import Mesh, mesh
from d8mesh.apps.demo import free_ports

PAYLOAD_BYTES = 64


def measure(*, workers: int, tasks: int, rounds: int) -> dict[str, list[float]]:
    """Return tasks/s of each round: the mesh by `submit_many`, by single submits, the raw loop."""
    rates: dict[str, list[float]] = {"submit_many": [], "submit": [], "raw loop": []}
    with mesh(workers=workers) as running, _raw(workers) as port:
        _warm_up(running, port)
        for _ in range(rounds):
            rates["submit_many"].append(_mesh_many(running, tasks))
            rates["raw loop"].append(_timed(lambda: raw.client(port, tasks, b"x" * 64), tasks))
            rates["submit"].append(_mesh_single(running, tasks // 4))
    return rates


def _warm_up(running: Mesh, port: int) -> None:
    _mesh_many(running, 2000)
    raw.client(port, 2000, b"x" * PAYLOAD_BYTES)


def _mesh_many(running: Mesh, tasks: int) -> float:
    data = {"x": "x" * (PAYLOAD_BYTES - 5)}
    with running.client() as client:
        start = time.perf_counter()
        count = sum(1 for _ in client.map("echo", [data] * tasks, timeout_s=300))
        seconds = time.perf_counter() - start
    assert count == tasks
    return tasks / seconds


def _mesh_single(running: Mesh, tasks: int) -> float:
    data = {"x": "x" * (PAYLOAD_BYTES - 5)}
    with running.client() as client:
        start = time.perf_counter()
        handles = [client.submit("echo", data) for _ in range(tasks)]
        for handle in handles:
            handle.result(300)
        return tasks / (time.perf_counter() - start)


def _timed(work: object, tasks: int) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return tasks / (time.perf_counter() - start)


@contextmanager
def _raw(workers: int) -> Iterator[int]:
    """Run the raw loop's broker and workers."""
    (port,) = free_ports(1)
    home = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "bench.raw"]
    broker = subprocess.Popen([*command, "broker", str(port)], cwd=home)
    others = [subprocess.Popen([*command, "worker", str(port)], cwd=home) for _ in range(workers)]
    try:
        yield port
    finally:
        raw.stop(port)
        for process in (broker, *others):
            process.kill()
            process.wait()
