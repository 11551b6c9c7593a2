"""Where each microsecond of a task goes: by stage in one process, by process in a mesh."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.findings import Findings, Table
from bench.mesh import mesh
from bench.plan import Plan
from bench.processes import node
from bench.progress import say
from bench.rig import OUTBOX, STAGES, Rig
from d8mesh.nodes.broker import GC_ALLOCATIONS

#: Tasks under way at once in the rig: as many as a client and two workers have in the mesh.
BATCH: Final = 4000
BATCHES: Final = 10
#: Tasks that go the way one by one.
LONE_TASKS: Final = 1000
WARM_UP_BATCHES: Final = 3
MESH_TASKS: Final = 100_000
WORKERS: Final = 2
OUTBOX_ROWS: Final = 1000
DATA: Final = {"x": "x" * 59}
RESULT_S: Final = 600.0

BY_STAGE: Final = "By stage, one process after another"
ALONE: Final = "By stage, one task in flight"
BY_PROCESS: Final = "By process, CPU in a real mesh"
SUM: Final = "sum"
WALL: Final = "time per task, end to end"


def measure(plan: Plan) -> Findings:
    """Measure the rig and a mesh in turn."""
    found = Findings()
    found.note(
        f"By stage: client, broker and worker in one process, their real code called one after "
        f"another, batches of {BATCH:,} tasks in messages of up to 1,000; the clock of a stage "
        "also counts its waiting (fsync, TCP). One task in flight: the same with batches of one; "
        "in a mesh the first commit runs while the worker is at work, and each process that is "
        "woken adds its time. By process: processor time, all threads, of "
        f"`submit_many` with {WORKERS} workers; it holds the loops, wake-ups and system calls too."
    )
    found.note(
        "A no-op's result is not written to the outbox: only what took over 1 s, or has no "
        "broker, is. What that costs stands in a row outside the sum."
    )
    for turn in range(plan.rounds):
        say(f"hot path: round {turn + 1}")
        by_stage(found, plan)
        by_process(found, plan)
    return found


def by_stage(found: Findings, plan: Plan) -> None:
    """Measure each stage of the way, one after another."""
    with tempfile.TemporaryDirectory(prefix="d8-bench-") as folder:
        rig = Rig(Path(folder))
        thresholds = gc.get_threshold()
        try:
            _collect_as_the_broker()
            stages = found.table(BY_STAGE, "µs per task")
            _time_stages(stages, rig, BATCH, plan.tasks(BATCHES, least=1))
            _time_stages(found.table(ALONE, "µs"), rig, 1, plan.tasks(LONE_TASKS, least=20))
            seconds = rig.outbox_only(OUTBOX_ROWS)
            name = f"({OUTBOX}, results over 1 s: kept and forgotten on disk)"
            stages.add(name, "µs", seconds / OUTBOX_ROWS * 1e6)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
            rig.close()


def _time_stages(table: Table, rig: Rig, size: int, batches: int) -> None:
    """Run `batches` batches of `size` tasks; keep the time per task of each stage."""
    for _ in range(WARM_UP_BATCHES):
        rig.run(size)
    rig.spent_s.clear()
    done = sum(rig.run(size) for _ in range(batches))
    for stage in STAGES:
        table.add(stage, "µs", rig.spent_s[stage] / done * 1e6)
    table.add(SUM, "µs", sum(rig.spent_s.values()) / done * 1e6)


def _collect_as_the_broker() -> None:
    """Have the garbage collector look as seldom as in `Broker.run`."""
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def by_process(found: Findings, plan: Plan) -> None:
    """Measure the processor time of each process of a mesh at work."""
    table = found.table(BY_PROCESS, "µs per task")
    tasks = plan.tasks(MESH_TASKS)
    with mesh(workers=WORKERS) as running, running.client() as client:
        for _ in client.map("echo", [DATA] * 2000, timeout=RESULT_S):
            pass
        nodes = [node(os.getpid(), "client"), *running.nodes()]
        before = [each.cpu_s() for each in nodes]
        begun = time.perf_counter()
        for _ in client.map("echo", [DATA] * tasks, timeout=RESULT_S):
            pass
        wall_s = time.perf_counter() - begun
        used = [each.cpu_s() - was for each, was in zip(nodes, before, strict=True)]
    for each, cpu_s in zip(nodes, used, strict=True):
        table.add(each.name, "µs", cpu_s / tasks * 1e6)
    table.add(SUM, "µs", sum(used) / tasks * 1e6)
    table.add(WALL, "µs", wall_s / tasks * 1e6)
