"""The raw loops as processes, for as long as a scenario needs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import raw
from bench.processes import Node, node
from d8mesh.apps.demo import free_ports

#: Checkout, from which children import `bench`.
HOME: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class RawLoop:
    """A running raw loop."""

    port: int
    broker: Node


@contextmanager
def raw_loop(workers: int, *, kind: str = "") -> Iterator[RawLoop]:
    """Run a raw broker and `workers` workers.

    Args:
        workers: how many worker processes.
        kind: empty: one message per task; ``batched_``: 100 tasks per message; ``synced_``:
            on the disk before it answers; ``bare``: a broker that answers by itself.
    """
    (port,) = free_ports(1)
    role = "bare" if kind == "bare" else f"{kind}broker"
    started = [_start(role, port)]
    started += [_start(f"{kind}worker", port) for _ in range(workers)]
    try:
        if workers:
            raw.await_workers(port, workers)
        yield RawLoop(port, node(started[0].pid, "raw broker"))
    finally:
        raw.stop(port)
        for process in started:
            process.kill()
            process.wait()


def python(module: str, *arguments: object) -> Sequence[str]:
    """Return the command that runs a module of the bench."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def _start(role: str, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(python("bench.raw", role, port), cwd=HOME)
