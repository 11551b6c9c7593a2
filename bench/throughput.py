"""Durable no-op tasks per second, end to end, beside the raw loops and others, in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench import raw
from bench.contest import Contest, Running
from bench.findings import Findings, Table, ratios, rotated
from bench.mesh import mesh
from bench.plan import Plan
from bench.progress import say
from bench.raw_loop import raw_loop
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

#: Payload bytes -> (label, tasks of one round of the full run).
PAYLOADS: Final = {64: ("64 B", 100_000), 4096: ("4 KB", 30_000), 262_144: ("256 KB", 800)}
WORKERS: Final = (1, 2)
#: The batched loop is that much faster and gets more tasks, single submits get fewer.
BATCHED_SHARE: Final = 5
SINGLE_SHARE: Final = 2
#: Tasks before measuring: connections, caches and credits stand then.
WARM_UP: Final = 2000
#: A peer is measured for about this long a round, after a first look at how fast it is.
PEER_S: Final = 3.0
PEER_LOOK: Final = 100
#: A look shorter than this is taken again with twice the tasks.
PEER_WARM_S: Final = 0.5
RESULT_S: Final = 600.0

MANY: Final = "d8mesh submit_many (durable)"
SINGLE: Final = "d8mesh submit, one thread (durable)"
RAW: Final = "raw loop, unbatched"
BATCHED: Final = "raw loop, batched by 100"
RATES: Final = "Tasks per second"
OVER_RAW: Final = "Over the raw unbatched loop"
BESIDE: Final = "Beside others: tasks per second"
PEER_TASKS: Final = "Beside others: tasks of one round"
OVER_PEERS: Final = "d8mesh submit_many over others"


@dataclass(frozen=True, slots=True)
class _Contender:
    name: str
    tasks: int
    #: does that many tasks, start to last result
    work: Callable[[int], None]


def measure(plan: Plan) -> Findings:
    """Measure every payload with one and two workers, all contenders in turn."""
    found = Findings()
    found.note(
        "Client, broker, workers and journal share the machine's cores. d8mesh acknowledges each "
        "task after an fsync; the raw loops keep nothing."
    )
    contest = Contest(found) if plan.with_peers else None
    for workers in WORKERS:
        for size, (label, _) in PAYLOADS.items():
            column = f"{label}, {workers} worker{'s' if workers > 1 else ''}"
            say(f"throughput: {column}")
            compare(found, plan, workers, size, column)
            if contest is not None and size == min(PAYLOADS):
                compare_peers(found, plan, contest, workers, column)
    relate(found)
    return found


def compare(found: Findings, plan: Plan, workers: int, size: int, column: str) -> None:
    """Measure d8mesh and the raw loops in turn with payloads of `size` bytes."""
    rates = found.table(RATES, "tasks/s")
    with _contenders(plan, workers, size) as contenders:
        for each in contenders:
            each.work(min(WARM_UP, each.tasks))
        for turn in range(plan.rounds):
            for each in rotated(contenders, turn):
                rates.add(each.name, column, _rate(each))


def _rate(contender: _Contender) -> float:
    begun = time.perf_counter()
    contender.work(contender.tasks)
    return contender.tasks / (time.perf_counter() - begun)


@contextlib.contextmanager
def _contenders(plan: Plan, workers: int, size: int) -> Iterator[list[_Contender]]:
    tasks = plan.tasks(PAYLOADS[size][1], least=50)
    payload = b"x" * size
    data = {"x": "x" * (size - 5)}  # 5 bytes of msgpack around it
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(mesh(workers=workers))
        client = stack.enter_context(running.client())
        _refuse_wrong(client, data)
        plain = stack.enter_context(raw_loop(workers)).port
        batched = stack.enter_context(raw_loop(workers, kind="batched_")).port
        yield [
            _Contender(MANY, tasks, lambda count: _many(client, data, count)),
            _Contender(RAW, tasks, lambda count: raw.client(plain, count, payload)),
            _Contender(SINGLE, tasks // SINGLE_SHARE, lambda n: _single(client, data, n)),
            _Contender(
                BATCHED,
                tasks * BATCHED_SHARE if size < 100_000 else tasks,
                lambda count: raw.batched_client(batched, count, payload),
            ),
        ]


def _many(client: Client, data: dict[str, str], count: int) -> None:
    assert sum(1 for _ in client.map("echo", [data] * count, timeout=RESULT_S)) == count


def _refuse_wrong(client: Client, data: dict[str, str]) -> None:
    """Look once at what comes back; while it is timed nobody looks."""
    seen = client.submit("echo", data).result(RESULT_S)["output"]
    if seen != data:
        raise D8Error(f"throughput: echo returned {str(seen)[:80]}, not what it was given")


def _single(client: Client, data: dict[str, str], count: int) -> None:
    handles = [client.submit("echo", data) for _ in range(count)]
    for handle in handles:
        handle.result(RESULT_S)


# ------------------------------------------------------------------------------- others


def compare_peers(found: Findings, plan: Plan, contest: Contest, workers: int, column: str) -> None:
    """Measure each peer and d8mesh in turn; only one of the peers runs at a time."""
    if not contest:
        return
    size = min(PAYLOADS)
    beside = found.table(BESIDE, "tasks/s")

    def look(name: str, session: Running) -> None:
        count, rate = PEER_LOOK, session.throughput(PEER_LOOK)
        while count < rate * PEER_WARM_S:  # until it is warm: what was quick tells nothing
            count *= 2
            rate = session.throughput(count)
        tasks = max(PEER_LOOK, int(rate * plan.seconds(PEER_S)))
        beside.add(name, column, session.throughput(tasks))
        found.table(PEER_TASKS, "tasks").add(name, column, tasks)

    with mesh(workers=workers) as running, running.client() as client:
        data = {"x": "x" * (size - 5)}
        ours = _Contender(MANY, plan.tasks(PAYLOADS[size][1]), lambda n: _many(client, data, n))
        ours.work(WARM_UP)
        for _ in range(plan.rounds):
            beside.add(MANY, column, _rate(ours))
            contest.visit(workers, b"x" * size, look)


# ------------------------------------------------------------------------------- ratios


def relate(found: Findings) -> None:
    """Set everybody in relation to the raw loop, and d8mesh to the others."""
    rates = found.table(RATES, "tasks/s")
    _over(rates, found.table(OVER_RAW, "×"), bottom=RAW)
    beside = found.table(BESIDE, "tasks/s")
    over = found.table(OVER_PEERS, "×")
    for column in beside.columns:
        for row in beside.rows:
            if row != MANY:
                tops, bottoms = beside.samples(MANY, column), beside.samples(row, column)
                over.cells[row, column] = ratios(tops, bottoms)
    found.tables = [table for table in found.tables if table.cells]


def _over(rates: Table, into: Table, *, bottom: str) -> None:
    for column in rates.columns:
        for row in rates.rows:
            if row != bottom:
                tops, bottoms = rates.samples(row, column), rates.samples(bottom, column)
                into.cells[row, column] = ratios(tops, bottoms)
