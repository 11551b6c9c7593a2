"""Machines with an LLM service each, event by event, behind the broker's real brain.

A request takes `run_s / speed` once it runs; its first token comes after `FIRST_PART` of that. So
many run at a time as the machine is parallel, the others wait there. What a worker tells of slots
is what it has found out by the rule of the design: one, and one more to try while all generate.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect, Peer, Send
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol import messages as m
from tests.core.invariants import check, check_placed
from tests.core.llm_services import KINDS, model, service
from tests.core.wired_broker import START_AT, S, hello, result

FIRST_PART: Final = 0.1
TOKENS: Final = 100


@dataclass(eq=False)
class Machine:
    """One machine: its worker, and the service there."""

    name: str
    speed: float = 1.0
    parallel: int = 4
    is_loaded: bool = True
    load_s: float = 8.0
    #: what its worker says of slots before it has measured any; None: finds out from one on
    slots: int | None = None
    running: int = 0
    generating: int = 0
    waiting: list[tuple[str, bytes]] = field(default_factory=list)
    told: int = 1
    is_settled: bool = False
    is_loading: bool = False
    answered: int = 0
    seen_s: float = 0.0
    ran: list[str] = field(default_factory=list)
    warmed: int = 0

    def __post_init__(self) -> None:
        self.told, self.is_settled = self.slots or 1, self.slots is not None

    @property
    def peer(self) -> Peer:
        return Peer(f"r-{self.name}".encode(), "10.0.0.1")

    def offered(self) -> m.OfferedModel:
        rate = TOKENS / self.seen_s if self.seen_s else 0.0
        return model(
            "m", is_loaded=self.is_loaded, slots=self.told, requests=self.answered,
            prompt_tokens=self.answered * TOKENS, output_tokens=self.answered * TOKENS,
            prompt_tokens_per_s=rate / FIRST_PART,
            output_tokens_per_s=rate / (1.0 - FIRST_PART), size_bytes=2_000_000_000,
        )  # fmt: skip


class Pool:
    """The broker, the machines and the clock."""

    def __init__(self, machines: list[Machine], *, run_s: float = 0.5) -> None:
        self.now, self.at = 100.0, START_AT
        self.run_s = run_s
        self.machines = {machine.name: machine for machine in machines}
        self.brain = Dispatcher(
            Policy(broker_id="b", mesh="m"), Restored(1, bytes(32)), lambda: 0.5,
            now=self.now, at=self.at,
        )  # fmt: skip
        self.ended: dict[str, float] = {}
        self.max_in_flight = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = self._seq = self._counter = 0
        self._where: dict[str, str] = {}
        self.client = Peer(b"c", "10.0.0.9")
        self.say(self.client, m.ClientHello(1, "m", S, "pc"))
        for machine in machines:
            self.say(machine.peer, hello(machine.name, ("echo",)))
            offered = service(f"s-{machine.name}", [machine.offered()])
            self.say(machine.peer, m.Services(list(KINDS), [offered], [], [], []))

    def say(self, peer: Peer, message: Any) -> None:
        """Say something, and let the loop go round."""
        received = self.brain.receive(message, peer, self.now)
        self._perform([*received, *self.brain.tick(self.now, self.at)])

    def submit(self, count: int, **given: Any) -> list[str]:
        """Submit tasks; return their ids."""
        self._seq += 1
        group = m.Group("agent_action", given.pop("priority", 5), [b"\x80"] * count, **given)
        first, self._counter = self._counter, self._counter + count
        self.say(self.client, m.Submit(self._seq, S, first, [group]))
        return [f"{S}-{first + n}" for n in range(count)]

    def after(self, pause_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (self.now + pause_s, self._order, action))

    def run(self, count: int, *, within_s: float = 600.0) -> float:
        """Let time pass until so many tasks have ended; return the seconds that took."""
        began = self.now
        while len(self.ended) < count:
            assert self.now - began < within_s, f"{len(self.ended)} of {count} ended"
            tick = self.brain.next_deadline()
            due = self._due[0][0] if self._due else tick
            self._advance(min(due, tick))
            if due <= tick and self._due:
                heapq.heappop(self._due)[2]()
            else:
                for machine in self.machines.values():
                    worker = self.brain.state.registry.workers[machine.name]
                    worker.last_heard = self.now  # heartbeats are not what this is about
                self._perform(self.brain.tick(self.now, self.at))
        check(self.brain)
        return self.now - began

    def _advance(self, until: float) -> None:
        until = max(until, self.now)
        self.at += until - self.now
        self.now = until

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            machine = self.machines.get(effect.peer.routing_id.decode().removeprefix("r-"))
            match effect.message:
                case m.Placed(ids=ids, placements=placements) as message:
                    check_placed(self.brain.state, message)
                    self._where.update(zip(ids, (p.service for p in placements), strict=True))
                case m.Work(groups=groups) if machine:
                    for group in groups:
                        for task_id, token in zip(group.ids, group.tokens, strict=True):
                            assert self._where.pop(task_id) == f"s-{machine.name}"
                            machine.waiting.append((task_id, token))
                    self._begin(machine)
                case m.Warm() if machine:
                    machine.warmed += 1
                    self._load(machine)
                case m.Outcomes() | _:
                    pass

    def _load(self, machine: Machine) -> None:
        if not machine.is_loaded and not machine.is_loading:
            machine.is_loading = True

            def loaded() -> None:
                machine.is_loaded, machine.is_loading = True, False
                self._tell(machine)
                self._begin(machine)

            self.after(machine.load_s, loaded)

    def _begin(self, machine: Machine) -> None:
        if machine.waiting and not machine.is_loaded:
            self._load(machine)
        while machine.is_loaded and machine.waiting and machine.running < machine.parallel:
            machine.running += 1
            task_id, token = machine.waiting.pop(0)
            took_s = self.run_s / machine.speed
            self.after(took_s * FIRST_PART, lambda: self._first_token(machine))
            self.after(took_s, lambda i=task_id, t=token: self._end(machine, i, t))  # type: ignore[misc]

    def _first_token(self, machine: Machine) -> None:
        machine.generating += 1
        if not machine.is_settled and machine.generating >= machine.told:
            machine.told = machine.generating + 1
            self._tell(machine)

    def _end(self, machine: Machine, task_id: str, token: bytes) -> None:
        if machine.waiting and not machine.is_settled:
            machine.told, machine.is_settled = machine.generating, True
        machine.running -= 1
        machine.generating -= 1
        machine.answered += 1
        machine.seen_s = self.run_s / machine.speed
        machine.ran.append(task_id)
        self.ended[task_id] = self.now
        self._tell(machine)
        self._seq += 1
        self.say(
            machine.peer,
            m.Results(self._seq, 1, [task_id], [token], bytes([m.SUCCEEDED]), [result()]),
        )
        self._begin(machine)

    def _tell(self, machine: Machine) -> None:
        self.say(machine.peer, m.Measured(f"s-{machine.name}", [machine.offered()]))
