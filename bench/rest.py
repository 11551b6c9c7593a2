"""REST requests per second and how long they take, beside the same server with a constant."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Final

from bench.constant import serving
from bench.findings import Findings, percentile, ratios
from bench.load import LoadJob, Seen, run_load
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.progress import say
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, Group
from d8mesh.errors import D8Error

CONNECTIONS: Final = (1, 32, 256)
LOAD_S: Final = 3.0
#: Tasks laid out for the polling workers of each measurement second.
POLLED_PER_S: Final = 8_000
#: No mesh worker runs this type: what is submitted with it is accepted, and waits.
WAITING_TYPE: Final = "bench_waits"
POLLED_TYPE: Final = "bench_polled"

SUBMITS: Final = "submits (accepted, on disk)"
RUN: Final = "submits, and a worker runs them"
STATUS: Final = "status polls"
WAITS: Final = "submit and long poll for the result"
POLLING: Final = "polling workers: fetch a task, report its result"
CONSTANT: Final = "same server, Werkzeug, a constant (POST)"
CEILING: Final = "load generator's own ceiling"
RATES: Final = "REST: cycles per second"
TIMES: Final = "REST: p50 / p99 of a cycle"
OVER: Final = "Over the same server answering a constant"

#: row -> (script of the load generator, task type)
_OURS: Final = {
    SUBMITS: ("submit", WAITING_TYPE),
    RUN: ("submit", "echo"),
    STATUS: ("status", WAITING_TYPE),
    WAITS: ("wait", "echo"),
    POLLING: ("poll", POLLED_TYPE),
}


def column(connections: int) -> str:
    """Return the column of that many connections."""
    return f"{connections} connection{'s' if connections > 1 else ''}"


def measure(plan: Plan) -> Findings:
    """Measure all kinds of requests in turn, for each number of connections."""
    found = Findings()
    found.note(
        "Load comes from one process of our own (`bench/load.py`: raw sockets, keep-alive, closed "
        "loop) on the same cores; its ceiling is measured against a server that does not look at "
        "what comes. The constant comes from `d8mesh.http`, as REST does."
    )
    found.note("A cycle is all requests of a row: two for long polls and for polling workers.")
    with contextlib.ExitStack() as stack:
        constant = stack.enter_context(serving("bench.constant"))
        blind = stack.enter_context(serving("bench.load", "answer"))
        running = stack.enter_context(mesh(workers=1))
        for connections in CONNECTIONS:
            for turn in range(plan.rounds):
                say(f"rest: {column(connections)}, round {turn + 1}")
                job = LoadJob(
                    url=blind,
                    kind="constant",
                    connections=connections,
                    seconds=plan.seconds(LOAD_S, least_s=1.0),
                )
                load(found, CEILING, job)
                load(found, CONSTANT, replace(job, url=constant))
                for row, (kind, task_type) in _OURS.items():
                    if kind == "poll":
                        lay_out(running, int(job.seconds * POLLED_PER_S))
                    ours = replace(job, url=running.url, kind=kind, task_type=task_type)
                    load(found, row, ours)
    _relate(found)
    return found


def load(found: Findings, row: str, job: LoadJob) -> None:
    """Run one load and keep its figures as one more round of `row`."""
    seen = run_load(job)
    _refuse_errors(seen, row)
    if not seen.times:
        raise D8Error(f"rest: {row}: nothing was answered within {job.seconds:g} s")
    name = column(job.connections)
    found.table(RATES, "per second").add(row, name, seen.rate)
    times = found.table(TIMES, "ms")
    times.add(row, f"{name}, p50", percentile(seen.times, 0.5) * 1000)
    times.add(row, f"{name}, p99", percentile(seen.times, 0.99) * 1000)


def _refuse_errors(seen: Seen, row: str) -> None:
    if seen.errors:
        raise D8Error(f"rest: {row}: {seen.errors} requests failed, first: {seen.first_error}")


def lay_out(running: Mesh, count: int) -> None:
    """Queue `count` tasks for polling workers: more than they can fetch in the time."""
    with running.client() as client:
        for start in range(0, count, MAX_BATCH_TASKS):
            size = min(count - start, MAX_BATCH_TASKS)
            groups = [Group(POLLED_TYPE, 5, [b"\x80"] * size)]
            client.node.submitter.enqueue(groups, None, is_watched=False)
        client.flush()


def _relate(found: Findings) -> None:
    rates, over = found.table(RATES, "per second"), found.table(OVER, "×")
    for name in rates.columns:
        for row in _OURS:
            over.cells[row, name] = ratios(rates.samples(row, name), rates.samples(CONSTANT, name))
