"""What a task costs, and what it takes in memory, with few and with many queued."""

from __future__ import annotations

import time
from typing import Final

from bench.findings import Findings, ratios
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.processes import Node
from bench.progress import say
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, Group
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

#: Queue lengths whose memory is looked at; the last only in the first round.
LENGTHS: Final = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
#: Queue lengths at which tasks are run.
COST_LENGTHS: Final = (1_000, 10_000, 100_000, 1_000_000)
QUICK_LENGTHS: Final = (1_000, 10_000)
ONCE_FROM: Final = 10_000_000
WORKERS: Final = 2
#: Tasks run for one figure, and before it.
TASKS: Final = 150_000
WARM_UP: Final = 10_000
#: What is submitted whenever the queue is no longer than its length and that many: more than
#: the workers take between two looks, so that it is never shorter.
TOP_UP: Final = 10_000
LOOK_S: Final = 0.002
STALL_S: Final = 60.0
#: A msgpack map of 64 bytes: {"x": "xxx…"}.
PAYLOAD: Final = b"\x81\xa1x\xd9\x3b" + b"x" * 59

COSTS: Final = "Cost of a task while so many are queued"
COST_RATIO: Final = "Over the cost with 1,000 queued"
CPU: Final = "broker CPU per task"
WALL: Final = "time per task, end to end"
MEMORY: Final = "Broker memory"
RSS: Final = "RSS"
PEAK: Final = "highest RSS until then"
SHORTEST: Final = "Shortest queue seen while tasks were run"
PER_TASK: Final = "Bytes of broker memory per queued task"
FILLING: Final = "Tasks accepted per second while the queue is filled"


def column(length: int) -> str:
    """Return the column of that queue length."""
    return f"{length:,} queued"


def measure(plan: Plan) -> Findings:
    """Fill queues without workers and look at the memory; then run tasks at given lengths."""
    found = Findings()
    found.note(
        "Cost: the queue is filled before the workers come and kept at its length and up "
        f"to {2 * TOP_UP:,} more by new submits while tasks from its front are run (submitted, "
        "handed out, completed; nobody awaits their outcomes). A task counts half when it is "
        f"accepted and half when it is completed. {ONCE_FROM:,} queued are looked at once, in the "
        "first round."
    )
    for turn in range(plan.rounds):
        fill_up(found, plan, turn)
    for turn in range(plan.rounds):
        for length in COST_LENGTHS if plan.is_full else QUICK_LENGTHS:
            say(f"backlog: cost at {length:,}, round {turn + 1}")
            run_at(found, plan, length)
    for title in (COSTS, SHORTEST):  # the longest was looked at first
        table = found.table(title, "")
        table.cells = {
            (row, column(length)): table.samples(row, column(length))
            for row in table.rows
            for length in LENGTHS
            if table.samples(row, column(length))
        }
    costs, over = found.table(COSTS, "µs"), found.table(COST_RATIO, "×")
    for name in costs.columns:
        for row in costs.rows:
            base = costs.samples(row, column(COST_LENGTHS[0]))
            over.cells[row, name] = ratios(costs.samples(row, name), base)
    return found


def fill(client: Client, count: int) -> None:
    """Queue `count` tasks that nobody watches."""
    while count > 0:
        size = min(count, MAX_BATCH_TASKS)
        groups = [Group("echo", 5, [PAYLOAD] * size)]
        submission = client.node.submitter.enqueue(groups, STALL_S, is_watched=False)
        client.node.waiters.wait_settled(submission, STALL_S)
        count -= size


# -------------------------------------------------------------------------------- memory


def fill_up(found: Findings, plan: Plan, turn: int) -> None:
    """Fill a queue to one length after another and look at the broker's memory."""
    lengths = LENGTHS if plan.is_full else QUICK_LENGTHS
    memory, per_task = found.table(MEMORY, "MB"), found.table(PER_TASK, "bytes")
    filling = found.table(FILLING, "tasks/s")
    with mesh(workers=0) as running, running.client() as client:
        broker = running.broker()
        empty = broker.rss_bytes()
        memory.add(RSS, "empty", empty / 1e6)
        queued = 0
        for length in lengths:
            if turn and length >= ONCE_FROM:
                continue
            say(f"backlog: memory at {length:,}, round {turn + 1}")
            begun = time.perf_counter()
            fill(client, length - queued)
            rate = (length - queued) / (time.perf_counter() - begun)
            queued = length
            filling.add("accepted", column(length), rate)
            memory.add(RSS, column(length), broker.rss_bytes() / 1e6)
            per_task.add(RSS, column(length), (broker.rss_bytes() - empty) / length)
            if (peak := broker.peak_rss_bytes()) is not None:
                memory.add(PEAK, column(length), peak / 1e6)
            if length >= ONCE_FROM:
                cost_of(found, plan, running, client, length)


# ---------------------------------------------------------------------------------- cost


def run_at(found: Findings, plan: Plan, length: int) -> None:
    """Run tasks while `length` others are queued."""
    with mesh(workers=0) as running, running.client() as client:
        fill(client, length)
        cost_of(found, plan, running, client, length)


def cost_of(found: Findings, plan: Plan, running: Mesh, client: Client, length: int) -> None:
    """Let workers come to a queue of that length, and look at what tasks cost."""
    fill(client, 2 * TOP_UP)
    for _ in range(WORKERS):
        running.add_worker()
    running.await_workers(WORKERS)
    steady = _Steady(client, length)
    steady.run(plan.tasks(WARM_UP))
    wall_s, cpu_s, tasks = steady.measure(running.broker(), plan.tasks(TASKS))
    costs = found.table(COSTS, "µs")
    costs.add(CPU, column(length), cpu_s / tasks * 1e6)
    costs.add(WALL, column(length), wall_s / tasks * 1e6)
    found.table(SHORTEST, "tasks").add("pending", column(length), steady.shortest)


class _Steady:
    """Keeps the queue at its length while workers take from it."""

    def __init__(self, client: Client, length: int) -> None:
        self._client, self._length = client, length
        self.shortest = length + TOP_UP

    def measure(self, broker: Node, tasks: int) -> tuple[float, float, float]:
        """Return wall seconds, broker CPU seconds, and how many tasks they were for."""
        while self._look()[1] < self._length:  # both workers may have come long before we looked
            fill(self._client, TOP_UP)
        self.shortest = self._length + TOP_UP
        begun, before_s = time.perf_counter(), broker.cpu_s()
        handled = self.run(tasks)
        return time.perf_counter() - begun, broker.cpu_s() - before_s, handled

    def run(self, tasks: int) -> float:
        """Run until `tasks` more are completed; return the mean of accepted and completed."""
        begun, _ = self._look()
        until = time.monotonic() + STALL_S + tasks / 1000
        accepted = 0
        while True:
            done, waiting = self._look()
            self.shortest = min(self.shortest, waiting)
            if done - begun >= tasks:
                return (done - begun + accepted) / 2
            if waiting < self._length + TOP_UP:
                fill(self._client, TOP_UP)
                accepted += TOP_UP
            else:
                time.sleep(LOOK_S)
            if time.monotonic() > until:
                raise D8Error(f"backlog: only {done - begun} of {tasks} tasks were done in time")

    def _look(self) -> tuple[int, int]:
        tasks = self._client.ask("stats", {})["tasks"]
        return int(tasks["completed"]), int(tasks["pending"])
