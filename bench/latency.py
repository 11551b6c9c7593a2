"""How long one task takes: one in flight, at a given load, and while REST is saturated.

The open loop sends each task when its time has come, whatever became of those before, and
counts from that time: a stall is seen in all the tasks that it held up.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench import raw
from bench.contest import Contest, Running
from bench.findings import Findings, percentile, ratios, rotated
from bench.load import LoadJob, load_beside
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.processes import child_of
from bench.progress import say
from bench.raw_loop import raw_loop
from d8mesh.nodes.client import Client
from d8mesh.nodes.client.handle import Task

PAYLOAD: Final = b"x" * 64
DATA: Final = {"x": "x" * 59}
ONE_IN_FLIGHT: Final = 3000
#: A round goes from one to the next so often: what else the machine does meets all of them.
TURNS: Final = 30
WARM_UP: Final = 300
PEER_TASKS: Final = 500
OPEN_S: Final = 4.0
SHARES: Final = (0.1, 0.5, 0.9)
#: Tasks for finding the peak that the shares are of.
PEAK_TASKS: Final = 40_000
#: Single measurements kept of each row and round, for the plot.
KEPT: Final = 2000
#: How much lower the priority of the REST process and of the load generator is (os.nice).
NICE: Final = 10
CONNECTIONS: Final = 32
RESULT_S: Final = 60.0

PEERS: Final = "One task in flight, beside others"
ONE: Final = "One task in flight"
OPEN: Final = "Open loop (Poisson arrivals), latency from the time a task was due"
MEANWHILE: Final = "What REST did meanwhile"
BESIDE_REST: Final = "Dispatch while REST is saturated (shim and load generator at nice +10)"
RATIOS: Final = "Ratios"
QUIET: Final = "REST quiet"
OURS: Final = "d8mesh (durable), Client.call"
HANDLES: Final = "d8mesh (durable), Client.submit and result"
LOOP: Final = "raw loop, unbatched"
SYNCED: Final = "raw loop, unbatched, synced twice"
BARE: Final = "bare ROUTER/DEALER echo"
ONE_OVER_RAW: Final = "one in flight, d8mesh over the raw loop"
HANDLES_OVER_RAW: Final = "one in flight, d8mesh with submit and result, over the raw loop"
FLOOR_OVER_RAW: Final = "one in flight, the synced raw loop over the raw loop"
ONE_OVER_FLOOR: Final = "one in flight, d8mesh over the synced raw loop"


def beside_rest(kind: str) -> str:
    """Return the row of the ratio beside that kind of REST load."""
    return f"dispatch while REST is saturated with {kind} requests, over quiet"


def measure(plan: Plan) -> Findings:
    """Measure all three kinds of latency."""
    found = Findings()
    one_in_flight(found, plan)
    if plan.with_peers:
        beside_peers(found, plan, Contest(found))
    at_load(found, plan)
    while_rest_is_busy(found, plan)
    return found


# ------------------------------------------------------------------------ one in flight


def one_in_flight(found: Findings, plan: Plan) -> None:
    """Measure d8mesh, the raw loop, that with two syncs, and a bare echo in turn."""
    found.note(
        "Synced twice: a raw loop that writes and syncs one block when it has handed a task out "
        "and another before it answers. That is the least a durable loop does on this disk."
    )
    found.note(
        "Client.call waits for its task on the caller's own thread and connection, as the raw "
        "loops' clients do; submit and result go through the client's thread, as all else does."
    )
    say("latency: one in flight")
    count = plan.tasks(ONE_IN_FLIGHT)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(mesh(workers=1))
        client = stack.enter_context(running.client())
        loop = stack.enter_context(raw_loop(1)).port
        synced = stack.enter_context(raw_loop(1, kind="synced_")).port
        bare = stack.enter_context(raw_loop(0, kind="bare")).port
        works: dict[str, Callable[[int], list[float]]] = {
            OURS: lambda n: round_trips(client, n),
            HANDLES: lambda n: handle_round_trips(client, n),
            LOOP: lambda n: raw.round_trips(loop, n, PAYLOAD),
            SYNCED: lambda n: raw.round_trips(synced, n, PAYLOAD),
            BARE: lambda n: raw.round_trips(bare, n, PAYLOAD),
        }
        for work in works.values():
            work(WARM_UP)
        for turn in range(plan.rounds):
            times: dict[str, list[float]] = {name: [] for name in works}
            for part in range(TURNS):
                for name, work in rotated(list(works.items()), turn + part):
                    times[name] += work(-(-count // TURNS))
            for name, seconds in times.items():
                _keep(found, ONE, name, seconds)
    _relate(found, ONE, OURS, LOOP, ONE_OVER_RAW)
    _relate(found, ONE, HANDLES, LOOP, HANDLES_OVER_RAW)
    _relate(found, ONE, SYNCED, LOOP, FLOOR_OVER_RAW)
    _relate(found, ONE, OURS, SYNCED, ONE_OVER_FLOOR)


def beside_peers(found: Findings, plan: Plan, contest: Contest) -> None:
    """Measure d8mesh and each peer in turn, one task in flight."""
    count = plan.tasks(PEER_TASKS, least=20)

    def look(name: str, session: Running) -> None:
        session.latencies(max(10, count // 10))
        _keep(found, PEERS, name, session.latencies(count))

    with mesh(workers=1) as running, running.client() as client:
        round_trips(client, WARM_UP)
        for _ in range(plan.rounds):
            _keep(found, PEERS, OURS, round_trips(client, count))
            contest.visit(1, PAYLOAD, look)


def round_trips(client: Client, count: int) -> list[float]:
    """Return the seconds of each of `count` tasks, one in flight."""
    return _timed(count, lambda: client.call("echo", DATA, timeout=RESULT_S))


def handle_round_trips(client: Client, count: int) -> list[float]:
    """Return the same of tasks that are submitted, and their results then waited for."""
    return _timed(count, lambda: client.submit("echo", DATA).result(RESULT_S))


def _timed(count: int, work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return times


# ----------------------------------------------------------------------------- open loop


def at_load(found: Findings, plan: Plan) -> None:
    """Measure the peak of d8mesh and of the raw loop, then each at shares of its own."""
    draw = random.Random(8)
    peaks = found.table("Peak of single submits, two workers", "tasks/s")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(mesh(workers=2))
        client = stack.enter_context(running.client())
        loop = stack.enter_context(raw_loop(2)).port
        tasks = plan.tasks(PEAK_TASKS)
        _timed_rate(lambda: _burst(client, min(tasks, 2000)), 1)
        for _ in range(plan.rounds):
            peaks.add(OURS, "peak", _timed_rate(lambda: _burst(client, tasks), tasks))
            rate = _timed_rate(lambda: raw.client(loop, tasks, PAYLOAD), tasks)
            peaks.add(LOOP, "peak", rate)
        peak_ours = min(peaks.samples(OURS, "peak"))  # of the slowest round: below capacity
        peak_raw = min(peaks.samples(LOOP, "peak"))
        for share in SHARES:
            say(f"latency: open loop at {share:.0%}")
            name = f"at {share:.0%} of its peak"
            for _ in range(plan.rounds):
                span_s = plan.seconds(OPEN_S)
                ours = open_loop(client, poisson(draw, share * peak_ours, span_s))
                _keep(found, OPEN, f"{OURS} {name}", ours)
                times = raw.open_loop(loop, poisson(draw, share * peak_raw, span_s), PAYLOAD)
                _keep(found, OPEN, f"{LOOP} {name}", times)


def poisson(draw: random.Random, rate: float, span_s: float) -> list[float]:
    """Return the times of arrivals at `rate` per second during `span_s` seconds."""
    times: list[float] = []
    now = draw.expovariate(rate)
    while now < span_s or not times:
        times.append(now)
        now += draw.expovariate(rate)
    return times


def open_loop(client: Client, schedule: Sequence[float]) -> list[float]:
    """Submit each task when its time has come; return the seconds from then to its result.

    Results are taken in order, on a thread of their own: one that comes before an earlier
    one counts from the time of that, so the figures are an upper bound.
    """
    handles: queue.SimpleQueue[tuple[float, Task]] = queue.SimpleQueue()
    times: list[float] = []
    begun = time.perf_counter()

    def take() -> None:
        for _ in schedule:
            due, handle = handles.get()
            handle.result(RESULT_S)
            times.append(time.perf_counter() - begun - due)

    taker = threading.Thread(target=take)
    taker.start()
    for due in schedule:
        pause_s = due - (time.perf_counter() - begun)
        if pause_s > 0:
            time.sleep(pause_s)
        handles.put((due, client.submit("echo", DATA)))
    taker.join()
    return times


def _burst(client: Client, count: int) -> None:
    for handle in [client.submit("echo", DATA) for _ in range(count)]:
        handle.result(RESULT_S)


def _timed_rate(work: Callable[[], object], count: int) -> float:
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


# ---------------------------------------------------------------------------- beside REST


def while_rest_is_busy(found: Findings, plan: Plan) -> None:
    """Measure one in flight with and without REST under full load, in turn."""
    count = plan.tasks(ONE_IN_FLIGHT, least=200)
    found.note(
        f"Beside REST: {CONNECTIONS} connections, each sending its next request when it has its "
        f"answer; the web process and the load generator run at nice +{NICE}. What REST submits is "
        "run by the same two workers."
    )
    with mesh(workers=2) as running, running.client() as client:
        child_of(running.orchestrator.process.pid, "_web").be_nice(NICE)
        round_trips(client, WARM_UP)
        for turn in range(plan.rounds):
            say(f"latency: beside REST, round {turn + 1}")
            _keep(found, BESIDE_REST, QUIET, round_trips(client, count))
            for kind in ("status", "submit"):
                with load_beside(_job(running, kind)) as seen:
                    _keep(found, BESIDE_REST, _busy(kind), round_trips(client, count))
                meanwhile = found.table(MEANWHILE, "per second")
                meanwhile.add(f"{kind} requests", "answered", seen.rate)
                meanwhile.add(f"{kind} requests", "refused", seen.errors / seen.seconds)
    for kind in ("status", "submit"):
        _relate(found, BESIDE_REST, _busy(kind), QUIET, beside_rest(kind))


def _busy(kind: str) -> str:
    return f"REST saturated with {kind} requests"


def _job(running: Mesh, kind: str) -> LoadJob:
    return LoadJob(url=running.url, kind=kind, connections=CONNECTIONS, seconds=0, nice=NICE)


# ---------------------------------------------------------------------------- the figures


def _keep(found: Findings, title: str, row: str, times: list[float]) -> None:
    table = found.table(title, "ms")
    for column, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        if len(times) * (1 - part) < 1:
            continue  # it would be the worst by another name
        table.add(row, column, percentile(times, part) * 1000)
    table.add(row, "worst", max(times) * 1000)
    step = max(1, len(times) // KEPT)
    series = found.series.setdefault(f"{title} / {row}", [])
    series += [round(value * 1000, 4) for value in times[::step]]


def _relate(found: Findings, title: str, top: str, bottom: str, name: str) -> None:
    table, into = found.table(title, "ms"), found.table(RATIOS, "×")
    for column in ("p50", "p99"):
        into.cells[name, column] = ratios(table.samples(top, column), table.samples(bottom, column))
