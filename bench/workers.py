"""What a task costs the broker with 1 to 2,000 one-slot workers, beside the raw loop's broker."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from bench import raw
from bench.findings import Findings, ratios, rotated
from bench.mesh import mesh
from bench.plan import Plan
from bench.processes import raise_descriptor_limit
from bench.progress import say
from bench.raw_loop import raw_loop
from bench.swarm import FILES_EACH, FILES_SPARE, swarm
from d8mesh.nodes.client import Client

COUNTS: Final = (1, 10, 100, 500, 1000, 2000)
QUICK_COUNTS: Final = (1, 100)
TASKS: Final = 30_000
WARM_UP: Final = 2000
PAYLOAD: Final = b"x" * 64
DATA: Final = {"x": "x" * 59}
RESULT_S: Final = 600.0

COSTS: Final = "Broker CPU per task"
RATES: Final = "Tasks per second with one-slot workers"
OVER_RAW: Final = "Over the raw unbatched loop with as many workers"
CPU_RATIO: Final = "broker CPU per task"
OURS: Final = "d8mesh (durable)"
LOOP: Final = "raw loop, unbatched"


def column(count: int) -> str:
    """Return the column of that many workers."""
    return f"{count:,} worker{'s' if count > 1 else ''}"


def measure(plan: Plan) -> Findings:
    """Measure both brokers in turn for each number of workers."""
    found = Findings()
    found.note(
        "Simulated workers: DEALERs of two processes that speak the real protocol with "
        "heartbeats, one slot and no prefetch each, so that every task is a message of its own."
    )
    counts = COUNTS if plan.is_full else QUICK_COUNTS
    raise_descriptor_limit(FILES_EACH * max(counts) + FILES_SPARE)
    for count in counts:
        say(f"workers: {column(count)}")
        compare(found, plan, count)
    return found


def compare(found: Findings, plan: Plan, count: int) -> None:
    """Measure both brokers in turn with `count` one-slot workers each."""
    tasks = plan.tasks(TASKS if count > 1 else TASKS // 5)
    costs, rates = found.table(COSTS, "µs"), found.table(RATES, "tasks/s")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(mesh(workers=0))
        client = stack.enter_context(running.client())
        loop = stack.enter_context(raw_loop(0))
        mesh_name = running.config.mesh
        stack.enter_context(
            swarm("d8mesh", running.broker_port, mesh_name, count, running.server_key)
        )
        stack.enter_context(swarm("raw", loop.port, "-", count, b""))
        _many(client, min(tasks, WARM_UP))
        raw.client(loop.port, min(tasks, WARM_UP), PAYLOAD)
        ours = running.broker()
        for turn in range(plan.rounds):
            for name, broker in rotated([(OURS, ours), (LOOP, loop.broker)], turn):
                begun, before_s = time.perf_counter(), broker.cpu_s()
                if name == OURS:
                    _many(client, tasks)
                else:
                    raw.client(loop.port, tasks, PAYLOAD)
                rates.add(name, column(count), tasks / (time.perf_counter() - begun))
                costs.add(name, column(count), (broker.cpu_s() - before_s) / tasks * 1e6)
    over = found.table(OVER_RAW, "×")
    for row, table in ((CPU_RATIO, costs), ("tasks per second", rates)):
        tops, bottoms = table.samples(OURS, column(count)), table.samples(LOOP, column(count))
        over.cells[row, column(count)] = ratios(tops, bottoms)


def _many(client: Client, count: int) -> None:
    assert sum(1 for _ in client.map("echo", [DATA] * count, timeout=RESULT_S)) == count
