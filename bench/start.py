"""From a command to its first finished task, and what a node costs that has nothing to do."""

from __future__ import annotations

import time
from typing import Final

from bench.findings import Findings
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.processes import is_linux
from bench.progress import say

DATA: Final = {"x": "x" * 59}
#: How long idle nodes are watched; they have been quiet for `SETTLE_S` before.
IDLE_S: Final = 25.0
SETTLE_S: Final = 6.0
FIRST_S: Final = 60.0

COLD: Final = "Cold start"
MEMORY: Final = "Memory of an idle node"
CPU: Final = "CPU of an idle node"
WORKER_FIRST: Final = "worker: start to first finished task"
ALL_FIRST: Final = "orchestrator and worker: start to first finished task"


def measure(plan: Plan) -> Findings:
    """Measure starts round by round, then idle nodes."""
    found = Findings()
    cold = found.table(COLD, "s")
    for turn in range(plan.rounds):
        say(f"start: round {turn + 1}")
        begun = time.perf_counter()
        with mesh(workers=1) as running, running.client() as client:
            client.submit("echo", DATA).result(FIRST_S)
            cold.add(ALL_FIRST, "seconds", time.perf_counter() - begun)
        with mesh(workers=0) as running, running.client() as client:
            waiting = client.submit("echo", DATA)
            waiting.wait_accepted(FIRST_S)
            begun = time.perf_counter()
            running.add_worker()
            waiting.result(FIRST_S)
            cold.add(WORKER_FIRST, "seconds", time.perf_counter() - begun)
    watch_idle(found, plan)
    found.note(
        "Files are in the page cache (a second start). PSS counts shared pages in parts; it is "
        "what one more node costs."
    )
    return found


def watch_idle(found: Findings, plan: Plan) -> None:
    """Look at the memory and the processor time of nodes that have nothing to do."""
    span_s = plan.seconds(IDLE_S, least_s=20.0 if plan.is_full else 1.0)
    with mesh(workers=1) as running:
        with running.client() as client:  # every node has done its work once
            client.submit("echo", DATA).result(FIRST_S)
        time.sleep(plan.seconds(SETTLE_S))
        for turn in range(plan.rounds):
            say(f"start: idle for {span_s:.0f} s, round {turn + 1}")
            _watch(found, running, span_s)


def _watch(found: Findings, running: Mesh, span_s: float) -> None:
    nodes = running.nodes()
    before = {each.name: each.exact_cpu_s() for each in nodes}
    begun = time.perf_counter()
    time.sleep(span_s)
    passed_s = time.perf_counter() - begun
    for each in nodes:
        used_s = each.exact_cpu_s() - before[each.name]
        found.table(CPU, "% of a core").add(each.name, "idle", 100 * used_s / passed_s)
        memory = found.table(MEMORY, "MB")
        memory.add(each.name, "RSS", each.rss_bytes() / 1e6)
        if is_linux() and (pss := each.pss_bytes()) is not None:
            memory.add(each.name, "PSS", pss / 1e6)
