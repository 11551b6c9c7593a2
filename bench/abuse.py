"""What a healthy client keeps of its throughput while 350 peers mean no good, at both doors.

300 connections dribble (HTTP and ZeroMQ), and 50 peers ask for long answers and never read. The
same client before and during, in turn, in one run.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

from bench.abusers import AbuseJob, abusers_beside
from bench.findings import Findings, ratios, rotated
from bench.load import LoadJob, run_load
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.progress import say
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

DRIBBLING: Final = 300
DEAF: Final = 50
#: Tasks that are there, so that who asks for pages of them gets long answers.
TASKS: Final = 5000
#: Of one turn: tasks of the client, then submits over REST.
BATCH_TASKS: Final = 1000
TURN_S: Final = 30.0
CONNECTIONS: Final = 8
RESULT_S: Final = 120.0

RATES: Final = "Throughput of a healthy client"
KEPT: Final = "Throughput kept under abuse"
MEMORY: Final = "Memory under abuse"
QUIET, ABUSED = "quiet", "under abuse"
ZEROMQ, REST = "tasks over ZeroMQ", "submits over REST"


def measure(plan: Plan) -> Findings:
    """Measure quiet and abused turns one after the other."""
    found = Findings()
    found.note(
        f"{DRIBBLING} connections that dribble and {DEAF} peers that never read, half of them at "
        "each port, in a process of lower priority on the same machine: they stand for others. "
        "Whoever is cut off comes back."
    )
    with mesh(workers=1) as running, running.client() as client:
        work(client, TASKS)
        for turn in range(plan.rounds):
            for column in rotated([QUIET, ABUSED], turn):
                say(f"abuse: {column}, round {turn + 1}")
                with contextlib.ExitStack() as beside:
                    if column == ABUSED:
                        beside.enter_context(abusers_beside(job_of(running)))
                    _turn(found, running, client, plan, column)
        for node in running.nodes():
            if (peak := node.peak_rss_bytes()) is not None:
                found.table(MEMORY, "MB").add(node.name, "peak", peak / 1e6)
    rates, kept = found.table(RATES, "per second"), found.table(KEPT, "×")
    for row in (ZEROMQ, REST):
        kept.cells[row, KEPT] = ratios(rates.samples(row, ABUSED), rates.samples(row, QUIET))
    return found


def job_of(running: Mesh, *, dribbling: int = DRIBBLING, deaf: int = DEAF) -> AbuseJob:
    """Return what is sent against a mesh."""
    return AbuseJob(
        url=running.url,
        endpoint=f"tcp://127.0.0.1:{running.broker_port}",
        server_key=running.server_key.hex(),
        mesh=running.config.mesh,
        dribbling=dribbling,
        deaf=deaf,
    )


def work(client: Client, count: int) -> None:
    """Have so many tasks done."""
    done = sum(1 for _ in client.map("echo", [{"x": "x" * 52}] * count, timeout=RESULT_S))
    if done != count:
        raise D8Error(f"abuse: {done} of {count} tasks came back")


def rate_of(client: Client, seconds: float) -> float:
    """Return tasks per second, from the submit to the last result."""
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        work(client, BATCH_TASKS)
        done += BATCH_TASKS
    return done / (time.monotonic() - begun)


def _turn(found: Findings, running: Mesh, client: Client, plan: Plan, column: str) -> None:
    rates, seconds = found.table(RATES, "per second"), plan.seconds(TURN_S, least_s=1.0)
    rates.add(ZEROMQ, column, rate_of(client, seconds))
    job = LoadJob(url=running.url, kind="submit", connections=CONNECTIONS, seconds=seconds)
    seen = run_load(job)
    if seen.errors:
        raise D8Error(f"abuse: {seen.errors} submits failed, first: {seen.first_error}")
    rates.add(REST, column, seen.rate)
