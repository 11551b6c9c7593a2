"""A seeded world in which the real brains meet drops, delays, partitions, crashes and clock jumps.

Real: `Dispatcher` with the real journal (on a scratch file, without syncs: the world itself
decides what a crash loses), `WorkerSession` and `ClientSession`. Simulated: the network, the
clocks, the handlers. Safety is checked at every commit and every message, liveness once the
world is kind again.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from d8mesh.core.protocol import messages as m
from tests.core.invariants import check
from tests.simulation.clients import SimClient, SimPoller
from tests.simulation.orchestrator import Orchestrator
from tests.simulation.people import People
from tests.simulation.safety import Safety
from tests.simulation.wire import Weather
from tests.simulation.workers import SimWorker

#: Seconds of trouble, and the seconds in which a kind world must finish everything.
TROUBLE_S: Final = 45.0
KIND_S: Final = 400.0
STEP_S: Final = 0.25
START_AT: Final = 1_700_000_000.0

Node: TypeAlias = SimWorker | SimClient | SimPoller


@dataclass(slots=True)
class Counts:
    """What a run went through."""

    tasks: int = 0
    executions: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class World:
    """One seeded history.

    Args:
        seed: decides everything.
        folder: scratch, for the journals.
        is_calm: nothing bad happens at all.
        plant: changes the world before it begins.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        *,
        is_calm: bool = False,
        plant: Callable[[World], None] | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.now, self.at = 1000.0, START_AT
        self.counts = Counts()
        self.safety = Safety(seed)
        self.safety.causes.pass_time(self.now, self.at)
        self.is_kind = is_calm
        self.weather = Weather() if is_calm else self._weather()
        #: (node, orchestrator, direction) that lead nowhere; direction 0 is to the orchestrator
        self.cut: set[tuple[str, str, int]] = set()
        self._highest_at = self.at
        #: submits per step; a queue that grows, or workers that idle
        self._submits = rng.choice((0.05, 0.15, 0.4))
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        #: how often each kind of trouble comes: most histories have a few kinds, some all
        self._chances = {
            name: 0.0 if is_calm else rng.choice((0.0, 0.01, 0.02, 0.05))
            for name in ("broker", "worker", "client", "cut", "clock", "pause", "meddle")
        }
        self.people = People(self, seed, is_calm=is_calm)
        #: nodes whose keys are known to every orchestrator from the start
        self.trusted = ("c0", "c1", "p0-web", "p1-web")
        self.orchestrators: list[Orchestrator] = []
        for number in range(rng.choice((1, 1, 2))):
            self.orchestrators.append(Orchestrator(self, number, folder / f"{number}.db"))
        self.workers = [SimWorker(self, n) for n in range(rng.randint(1, 3))]
        self.clients = [SimClient(self, n) for n in range(rng.randint(1, 2))]
        self.pollers = [SimPoller(self, n) for n in range(rng.choice((0, 0, 1, 2)))]
        self._nodes: list[Node] = [*self.workers, *self.clients, *self.pollers]
        if plant is not None:
            plant(self)

    def _weather(self) -> Weather:
        rng = self.rng
        return Weather(
            is_ordered=rng.random() < 0.5,
            drop=rng.choice((0.0, 0.02, 0.1)),
            delay=rng.choice((0.0, 0.05, 0.2)),
            repeat=rng.choice((0.0, 0.02, 0.1)),
        )

    # ------------------------------------------------------------------ running

    def run(self) -> Counts:
        """Live through the history; return what it was.

        Raises:
            Violation: a promise was broken.
        """
        try:
            for _ in range(int(TROUBLE_S / STEP_S)):
                if self.rng.random() < self._submits:
                    self.rng.choice(self.clients).submit()
                self._trouble()
                self.people.trouble()
                self._step()
            self._make_kind()
            for _ in range(int(KIND_S / STEP_S)):
                self._step()
                if self._is_settled():
                    break
            self._check_end()
        finally:
            for orchestrator in self.orchestrators:
                orchestrator.close()
        return self.counts

    def after(self, pause_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._order += 1
        heapq.heappush(self._due, (self.now + pause_s, self._order, action))

    def _step(self) -> None:
        until = self.now + STEP_S
        while self._due and self._due[0][0] <= until:
            due, _, action = heapq.heappop(self._due)
            self._advance(max(due, self.now))
            action()
        self._advance(until)
        self.people.look()
        for orchestrator in self.orchestrators:
            orchestrator.tick()
        for node in self._nodes:
            node.tick()

    def _advance(self, now: float) -> None:
        self.at += now - self.now
        self.now = now
        self.safety.now = now - 1000.0
        self.safety.causes.pass_time(self.now, self.at)

    # ------------------------------------------------------------------ trouble

    def _trouble(self) -> None:
        """Maybe do something unkind."""
        rng, faults = self.rng, self.counts.faults
        for name, chance in self._chances.items():
            if rng.random() >= chance:
                continue
            faults[f"{name} trouble"] += 1
            match name:
                case "broker":
                    rng.choice(self.orchestrators).crash()
                case "worker":
                    rng.choice([n for n in self._nodes if not isinstance(n, SimClient)]).crash()
                case "client":
                    rng.choice(self.clients).crash()
                case "meddle":
                    rng.choice(self.clients).meddle()
                case "cut":
                    self._cut(rng.choice(self._nodes).name)
                case "clock":
                    self.at += rng.choice((1.0, 30.0, 1e6)) * rng.uniform(-1, 1)
                    self._highest_at = max(self._highest_at, self.at)
                case _:
                    victims: list[Node | Orchestrator] = [*self._nodes, *self.orchestrators]
                    rng.choice(victims).paused_until = self.now + rng.random() * 20

    def _cut(self, name: str) -> None:
        """A partition, in one direction or both, for a while."""
        orchestrator = self.rng.choice(self.orchestrators).name
        for direction in self.rng.choice(((0, 1), (0, 1), (0,), (1,))):
            way = (name, orchestrator, direction)
            self.cut.add(way)
            self.after(self.rng.random() * 25, partial(self.cut.discard, way))

    def _make_kind(self) -> None:
        self.is_kind = True
        self.weather = Weather()
        self.cut.clear()
        self.at = max(self.at, self._highest_at + 60)  # what was to run later may run now
        for orchestrator in self.orchestrators:
            orchestrator.paused_until = 0.0
        for node in self._nodes:
            node.paused_until = 0.0

    # ------------------------------------------------------------------ the end

    def _is_settled(self) -> bool:
        return (
            all(client.is_satisfied for client in self.clients)
            and len(self.safety.outcomes) == len(self.safety.accepted)
            and not any(worker.outbox for worker in self.workers)
        )

    def _check_end(self) -> None:
        """In a kind world everything accepted ends, and is told."""
        safety = self.safety
        for task_id in safety.accepted:
            if task_id not in safety.outcomes:
                safety.fail(task_id, "is stuck: no outcome in a kind world")
        for client in self.clients:
            for submission in client.submissions:
                for index in range(0 if submission.refusal else submission.count):
                    if not submission.is_accepted:
                        safety.fail(
                            submission.task_id(index), "was never acknowledged in a kind world"
                        )
                    if not submission.states[index]:
                        safety.fail(submission.task_id(index), "its outcome was never told")
                    if submission.states[index] == m.UNKNOWN_STATE:
                        safety.fail(submission.task_id(index), "is lost")
        for worker in self.workers:
            for kept in worker.outbox.values():
                safety.fail(kept.task_id, "its result stays in the outbox for ever")
        for orchestrator in self.orchestrators:
            check(orchestrator.dispatcher)
            task_table = orchestrator.dispatcher.state.task_table
            assert task_table.queued == task_table.running == task_table.unfinished_bytes == 0
