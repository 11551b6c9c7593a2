"""What the figures have to show: the promised bounds, and where each is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench import (
    abuse,
    backlog,
    batches,
    curve,
    doors,
    latency,
    llm,
    recovery,
    rest,
    sides,
    start,
    throughput,
    workers,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Must:
    """One bound: `must` and `goal` are reached by larger figures, or by smaller ones."""

    text: str
    must: float
    goal: float
    unit: str
    scenario: str
    table: str
    row: str
    column: str
    is_more_better: bool = False

    @property
    def must_text(self) -> str:
        """The bound in words."""
        return self._bound(self.must)

    @property
    def goal_text(self) -> str:
        """The goal in words."""
        return self._bound(self.goal)

    def verdict(self, seen: float) -> str:
        """Return what a median of `seen` means."""
        if self._reaches(seen, self.goal):
            return "goal"
        return "holds" if self._reaches(seen, self.must) else "**missed**"

    def _reaches(self, seen: float, bound: float) -> bool:
        return seen >= bound if self.is_more_better else seen <= bound

    def _bound(self, value: float) -> str:
        return f"{'≥' if self.is_more_better else '≤'} {value:,g} {self.unit}".rstrip()


def _over_peer(peer: str, must: float, goal: float) -> Must:
    return Must(
        text=f"the same over {peer}",
        must=must,
        goal=goal,
        unit="×",
        scenario="throughput",
        table=throughput.OVER_PEERS,
        row=peer,
        column="64 B, 2 workers",
        is_more_better=True,
    )


def _memory_of_a_batch(process: str) -> Must:
    return Must(
        text=f"most memory of the {process} process in a batch of 50,000 lines and 200 MB",
        must=300,
        goal=100,
        unit="MB",
        scenario="batches",
        table=batches.MEMORY,
        row=process,
        column="peak",
    )


def _kept_under_abuse(door: str) -> Must:
    return Must(
        text=f"{door} of a healthy client beside 300 dribbling connections and 50 deaf peers",
        must=0.9,
        goal=0.95,
        unit="×",
        scenario="abuse",
        table=abuse.KEPT,
        row=door,
        column=abuse.KEPT,
        is_more_better=True,
    )


MUSTS: Final[tuple[Must, ...]] = (
    Must(
        text="no-op tasks/s, `submit_many`, 2 workers, over the raw *unbatched* pyzmq loop",
        must=1.2,
        goal=2.2,
        unit="×",
        scenario="throughput",
        table=throughput.OVER_RAW,
        row=throughput.MANY,
        column="64 B, 2 workers",
        is_more_better=True,
    ),
    _over_peer("JetStream", 3, 5),
    _over_peer("dramatiq", 20, 40),
    _over_peer("Dask", 20, 40),
    _over_peer("Celery", 75, 140),
    Must(
        text="single `submit()` calls from one thread, pipelined",
        must=15_000,
        goal=30_000,
        unit="tasks/s",
        scenario="throughput",
        table=throughput.RATES,
        row=throughput.SINGLE,
        column="64 B, 2 workers",
        is_more_better=True,
    ),
    Must(
        text="one task in flight, durable, p50 over the raw loop's",
        must=3,
        goal=1.8,
        unit="×",
        scenario="latency",
        table=latency.RATIOS,
        row=latency.ONE_OVER_RAW,
        column="p50",
    ),
    Must(
        text="REST submits, 32 connections, over the same server answering a constant "
        "through Werkzeug",
        must=0.25,
        goal=0.5,
        unit="×",
        scenario="rest",
        table=rest.OVER,
        row=rest.SUBMITS,
        column=rest.column(32),
        is_more_better=True,
    ),
    Must(
        text="dispatch p99 while REST is saturated (submits), over p99 without",
        must=4,
        goal=2,
        unit="×",
        scenario="latency",
        table=latency.RATIOS,
        row=latency.beside_rest("submit"),
        column="p99",
    ),
    Must(
        text="no-op tasks/s, `submit_many`, encrypted over the same in clear",
        must=0.9,
        goal=0.95,
        unit="×",
        scenario="curve",
        table=curve.OVER,
        row=sides.THROUGHPUT,
        column="64 B",
        is_more_better=True,
    ),
    Must(
        text="one task in flight, durable, p50, encrypted over the same in clear",
        must=1.1,
        goal=1.05,
        unit="×",
        scenario="curve",
        table=curve.OVER,
        row=sides.LATENCY,
        column="p50",
    ),
    Must(
        text="cost per task (broker CPU) at 1,000,000 queued over at 1,000",
        must=1.25,
        goal=1.05,
        unit="×",
        scenario="backlog",
        table=backlog.COST_RATIO,
        row=backlog.CPU,
        column=backlog.column(1_000_000),
    ),
    Must(
        text="broker memory with 10,000,000 queued 64-byte tasks",
        must=3000,
        goal=300,
        unit="MB",
        scenario="backlog",
        table=backlog.MEMORY,
        row=backlog.RSS,
        column=backlog.column(10_000_000),
    ),
    Must(
        text="broker CPU per task with 1,000 one-slot workers, over the raw unbatched loop's",
        must=1,
        goal=0.6,
        unit="×",
        scenario="workers",
        table=workers.OVER_RAW,
        row=workers.CPU_RATIO,
        column=workers.column(1000),
    ),
    Must(
        text="back in service with 1,000,000 queued",
        must=10,
        goal=2,
        unit="s",
        scenario="recovery",
        table=recovery.BACK,
        row=recovery.FIRST_DONE,
        column=recovery.column(1_000_000),
    ),
    Must(
        text="worker: start to first finished task",
        must=1.5,
        goal=0.7,
        unit="s",
        scenario="start",
        table=start.COLD,
        row=start.WORKER_FIRST,
        column="seconds",
    ),
    Must(
        text="worker: idle memory",
        must=60,
        goal=35,
        unit="MB",
        scenario="start",
        table=start.MEMORY,
        row="worker 1",
        column="RSS",
    ),
    Must(
        text="worker: idle CPU",
        must=0.5,
        goal=0.1,
        unit="% of a core",
        scenario="start",
        table=start.CPU,
        row="worker 1",
        column="idle",
    ),
    Must(
        text="300 LLM requests on machines of speeds 1, 1, ¼, cold, over the best schedule",
        must=1.15,
        goal=1.05,
        unit="×",
        scenario="llm",
        table=llm.OVER_BEST,
        row=llm.OURS,
        column=llm.COLD,
    ),
    Must(
        text="the same, the model loaded on all",
        must=1.08,
        goal=1.03,
        unit="×",
        scenario="llm",
        table=llm.OVER_BEST,
        row=llm.OURS,
        column=llm.WARM,
    ),
    Must(
        text="p95 of interactive first tokens beside a batch, over without it",
        must=1.5,
        goal=1.1,
        unit="×",
        scenario="llm",
        table=llm.MIXED,
        row=llm.P95,
        column="×",
    ),
    Must(
        text="makespan of that batch over its makespan alone",
        must=1.1,
        goal=1.05,
        unit="×",
        scenario="llm",
        table=llm.MIXED,
        row=llm.LOSS,
        column="×",
    ),
    Must(
        text="time to first token that the Ollama door adds, p50",
        must=3,
        goal=2,
        unit="ms",
        scenario="doors",
        table=doors.ADDED,
        row=doors.OLLAMA_DOOR,
        column="p50",
    ),
    Must(
        text="the same, p99",
        must=8,
        goal=6,
        unit="ms",
        scenario="doors",
        table=doors.ADDED,
        row=doors.OLLAMA_DOOR,
        column="p99",
    ),
    Must(
        text="time to first token that the OpenAI door adds, p50",
        must=3,
        goal=2,
        unit="ms",
        scenario="doors",
        table=doors.ADDED,
        row=doors.OPENAI_DOOR,
        column="p50",
    ),
    Must(
        text="the same of the OpenAI door, p99",
        must=8,
        goal=6,
        unit="ms",
        scenario="doors",
        table=doors.ADDED,
        row=doors.OPENAI_DOOR,
        column="p99",
    ),
    Must(
        text="64 one-token chats at once by the Ollama door, durable",
        must=400,
        goal=1000,
        unit="chats/s",
        scenario="doors",
        table=doors.SHORT,
        row=doors.OLLAMA_DOOR,
        column="chats/s",
        is_more_better=True,
    ),
    Must(
        text="64 one-token chats at once by the OpenAI door, durable",
        must=400,
        goal=1000,
        unit="chats/s",
        scenario="doors",
        table=doors.SHORT,
        row=doors.OPENAI_DOOR,
        column="chats/s",
        is_more_better=True,
    ),
    Must(
        text="tokens lost of a stream of 1,000 tokens/s",
        must=0.5,
        goal=0,
        unit="",
        scenario="doors",
        table=doors.FAST,
        row=doors.OPENAI_DOOR,
        column="lost",
    ),
    Must(
        text="200 streams of 50 tokens/s on one model, wall over ideal",
        must=1.1,
        goal=1.05,
        unit="×",
        scenario="doors",
        table=doors.MANY,
        row=doors.OPENAI_DOOR,
        column="wall over ideal, ×",
    ),
    Must(
        text="gap between two tokens of these, p99",
        must=40,
        goal=30,
        unit="ms",
        scenario="doors",
        table=doors.MANY,
        row=doors.OPENAI_DOOR,
        column="gap p99, ms",
    ),
    *(_memory_of_a_batch(name) for name in ("broker", "web")),
    _kept_under_abuse(abuse.ZEROMQ),
    _kept_under_abuse(abuse.REST),
)
