"""A pool of machines in virtual time: the real dispatcher, simulated services, no sockets."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect, Load, Loaded, Peer, Record, Send
from d8mesh.core.broker.state import Policy
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_worker, encode
from d8mesh.core.protocol.task import Completed, Failed
from tests.core.invariants import check
from tests.core.simulated_services import KIND, SimulatedService, SimulatedWorker
from tests.memory_store import MemoryDisk, MemoryStore

SESSION: Final = "0123456789abcdef"
CLIENT: Final = Peer(b"client", "10.0.0.9")
#: From the broker to a worker and back, each way.
LATENCY_S: Final = 0.0005
#: A client that says nothing is taken for gone.
CLIENT_BEAT_S: Final = 3.0
START_AT: Final = 1_000_000.0


@dataclass(slots=True)
class Job:
    """One task: what it asks for, and what became of it."""

    id: str
    prompt_tokens: int
    output_tokens: int
    submitted: float
    #: services that had it, and when each attempt began
    places: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    first: float = 0.0
    ended: float = 0.0
    is_failed: bool = False

    @property
    def took_s(self) -> float:
        """From submit to end."""
        return self.ended - self.submitted

    @property
    def first_s(self) -> float:
        """From submit to the first token of the last attempt."""
        return self.first - self.submitted


class SimulatedPool:
    """The broker's loop, the wires and the clock; add services and workers, submit, run."""

    heartbeat_s = 3.0
    result = msgspec.msgpack.encode({"success": True, "output": "x"})

    def __init__(self, **policy: Any) -> None:
        self.now, self.at = 1000.0, START_AT
        self.jobs: dict[str, Job] = {}
        self.workers: dict[bytes, SimulatedWorker] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = self._seq = self._counter = 0
        self._store = MemoryStore(MemoryDisk())
        self.dispatcher = Dispatcher(
            Policy(broker_id="b", mesh="m", **policy),
            self._store.restore(),
            lambda: 0.5,
            now=self.now,
            at=self.at,
        )
        self.to_broker(CLIENT, m.ClientHello(1, "m", SESSION, "pc"))
        self._client_beat()

    # ------------------------------------------------------------------ people

    def machine(self, name: str, models: Mapping[str, float], **given: Any) -> SimulatedService:
        """Add an Ollama with a worker beside it."""
        clocks = {key: given.pop(key) for key in ("first_token_s", "token_gap_s") if key in given}
        service = SimulatedService(self, name, models, **given)
        self.worker(f"worker of {name}", [service], **clocks)
        return service

    def worker(
        self, name: str, services: Sequence[SimulatedService], **clocks: float
    ) -> SimulatedWorker:
        """Add a worker that reaches these services."""
        found = self.workers[name.encode()] = SimulatedWorker(self, name, services, **clocks)
        found.join()
        return found

    def submit(
        self,
        count: int = 1,
        *,
        wish: str = "",
        prompt_tokens: int = 20,
        output_tokens: int = 20,
        priority: int = 5,
    ) -> list[Job]:
        """Submit tasks of one group now."""
        first, self._counter = self._counter, self._counter + count
        ids = [f"{SESSION}-{first + n}" for n in range(count)]
        made = [Job(each, prompt_tokens, output_tokens, self.now) for each in ids]
        self.jobs |= {each.id: each for each in made}
        self._seq += 1
        payloads = [msgspec.msgpack.encode({"id": each}) for each in ids]
        group = m.Group(KIND, priority, payloads, wish)
        self.to_broker(CLIENT, m.Submit(self._seq, SESSION, first, [group]))
        return made

    # ------------------------------------------------------------------ time

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self._n += 1
        heapq.heappush(self._events, (self.now + seconds, self._n, do))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while (due := self._next()) <= until:
            self._step(due)
        self.at += until - self.now
        self.now = until

    def run_until_done(self, *, within_s: float) -> float:
        """Let time pass until each task has ended; return how long that took.

        Raises:
            AssertionError: it takes longer.
        """
        begun = self.now
        while any(not each.ended for each in self.jobs.values()):
            due = self._next()
            left = [each.id for each in self.jobs.values() if not each.ended]
            assert due < begun + within_s, f"{len(left)} are not done, the first: {left[0]}"
            self._step(due)
        check(self.dispatcher)
        return max(each.ended for each in self.jobs.values()) - begun

    def _next(self) -> float:
        return max(self.now, min(self._events[0][0], self.dispatcher.next_deadline()))

    def _step(self, due: float) -> None:
        self.at += due - self.now
        self.now = due
        while self._events and self._events[0][0] <= due:
            heapq.heappop(self._events)[2]()
        self._perform(self.dispatcher.tick(self.now, self.at))

    # ------------------------------------------------------------------ wires

    def to_broker(self, peer: Peer, message: m.Message) -> None:
        """Send something to the broker."""
        frame = encode(message)
        self.after(LATENCY_S, lambda: self._hear(frame, peer))

    def _hear(self, frame: bytes, peer: Peer) -> None:
        self._perform(self.dispatcher.receive(decode_to_broker(frame), peer, self.now))

    def _perform(self, effects: Sequence[Effect]) -> None:
        facts = [each.fact for each in effects if isinstance(each, Record)]
        if facts:
            self._store.append(facts)
        for fact in facts:
            if isinstance(fact, (Completed, Failed)):
                self._ended(fact)
        for effect in effects:
            if isinstance(effect, Send) and effect.peer != CLIENT:
                worker, frame = self.workers[effect.peer.routing_id], encode(effect.message)
                self.after(LATENCY_S, lambda w=worker, f=frame: w.hear(decode_to_worker(f)))  # type: ignore[misc]
            elif isinstance(effect, Load):
                answer = self._store.ask(effect.question)
                self._perform(self.dispatcher.loaded(Loaded(effect.number, answer)))

    def _ended(self, fact: Completed | Failed) -> None:
        for task_id in fact.ids:
            job = self.jobs[task_id]
            job.ended, job.is_failed = self.now, isinstance(fact, Failed)

    def _client_beat(self) -> None:
        self.to_broker(CLIENT, m.Watch([]))
        self.after(CLIENT_BEAT_S, self._client_beat)

    # ------------------------------------------------------------------ what workers ask

    def job_of(self, payload: bytes) -> Job:
        """Return the task of a payload."""
        return self.jobs[msgspec.msgpack.decode(payload)["id"]]

    def note_first(self, task_id: str) -> None:
        """Its first token is there."""
        self.jobs[task_id].first = self.now


def best_makespan(machines: Sequence[tuple[float, int, float]], count: int) -> float:
    """Return how long `count` equal requests take at least.

    Args:
        machines: of each: seconds until it can begin, slots, seconds of one request.
    """
    ends = [(begins + takes, takes) for begins, slots, takes in machines for _ in range(slots)]
    heapq.heapify(ends)
    last = 0.0
    for _ in range(count):
        last, takes = heapq.heappop(ends)
        heapq.heappush(ends, (last + takes, takes))
    return last
