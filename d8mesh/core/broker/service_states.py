"""An LLM service, its models, and the placed attempts there: whether one more has room."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from d8mesh.core.broker.budgets import BudgetBook
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import OfferedModel, OfferedService

#: A model that has never answered gets so many requests at once: if it fails, no more are lost.
UNPROVEN_SLOTS: Final = 3
#: So many attempts in a row end badly before the broker pauses a model by itself.
STREAK_BEFORE_PAUSE: Final = 3
#: Such a pause, doubled for each in a row up to the cap; then one request shows how it stands.
#: The worker's own probe ends it sooner.
OWN_PAUSE_S: Final = 15.0
MAX_OWN_PAUSE_S: Final = 300.0
#: Attempts that one worker runs beside its slots: each has a thread there.
MAX_PLACED_OF_WORKER: Final = 256
#: A model that is loaded must be there after the time that takes, so many times, and this much.
WARM_FACTOR: Final = 2.0
WARM_GRACE_S: Final = 5.0
#: Of an answer that took less the speed tells nothing beside what every request takes.
SHORTEST_SAMPLE_S: Final = 0.5
#: How much the newest sample counts for how long requests really take.
PACE_WEIGHT: Final = 0.2


class AnswerTokens(Struct, frozen=True):
    """How long a question and an answer were, as the result tells it; 0: it does not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


NO_TOKENS: Final = AnswerTokens()


class Flight(Struct, eq=False):
    """A placed attempt that runs."""

    worker: WorkerState
    service: str
    model: str
    since: float
    #: how long it was expected to take; 0: not known
    expected_s: float = 0.0
    #: the same before what the pace taught, by a speed that was measured or not
    raw_s: float = 0.0
    is_measured: bool = False
    #: the model was not loaded then
    is_cold: bool = False


@dataclass(slots=True, eq=False)
class ModelState:
    """A model of a service, as all its workers together tell of it."""

    service: ServiceState
    name: str
    plain: str
    info: OfferedModel
    #: what the newest word of it was, and until when it stays loaded by that (monotonic)
    newest: OfferedModel | None = None
    expires: float = 0.0
    #: live workers that reach it and do not say that it is paused
    reach: dict[str, WorkerState] = field(default_factory=dict)
    #: what is told of a pause; empty if somebody reaches it
    paused: str = ""
    paused_since: float = 0.0
    #: a worker says that it is
    is_paused_told: bool = False
    in_flight: int = 0
    #: it has answered since it is known here
    has_answered: bool = False
    #: when it did so last (monotonic)
    answered_at: float = -math.inf
    #: attempts that ended badly in a row, and pauses of the broker's own in a row
    streak: int = 0
    pauses: int = 0
    #: the broker's own pause (monotonic); while one is open one attempt at a time shows
    own_pause_until: float = 0.0
    #: it is being loaded: when it is expected there, and when that must have come to an end
    #: (monotonic); 0: nobody was asked to load it since it was loaded last
    loaded_by: float = 0.0
    warming_until: float = 0.0
    loaded_since: float = -math.inf
    #: when the last request came to it (monotonic)
    used: float = -math.inf
    #: what its account allows, None: no account
    budget: BudgetBook | None = None
    #: really taken time to expected time; 0: no sample
    pace: float = 0.0
    is_pace_measured: bool = False

    @property
    def is_loaded(self) -> bool:
        """It can begin at once; in the cloud nothing is loaded for us."""
        return self.info.is_loaded or self.service.is_cloud

    def worker(self) -> WorkerState | None:
        """Return the worker through which it is asked: always the same while that lives.

        Only who sees all requests of a service can measure it.
        """
        for worker in self.reach.values():
            if worker.is_live and not worker.is_mute and worker.placed < MAX_PLACED_OF_WORKER:
                return worker
        return None

    def is_loading(self, now: float) -> bool:
        """Return whether it will be loaded soon: it was asked for."""
        return not self.is_loaded and now < self.warming_until

    def load(self, load_s: float, now: float) -> None:
        """Note that it is asked for and takes so long to load."""
        self.loaded_by = now + load_s
        self.warming_until = self.loaded_by + load_s * (WARM_FACTOR - 1.0) + WARM_GRACE_S

    def bound(self, now: float) -> int:
        """Return how many attempts may run at once; 0: none may begin."""
        if not self.reach or now < self.own_pause_until:
            return 0
        bound = self.info.slots
        if self.pauses or (not self.is_loaded and not self.service.is_cloud):
            bound = min(bound, 1)
        if not self.has_answered and not self.info.requests:
            bound = min(bound, UNPROVEN_SLOTS)
        if self.service.slots:
            bound = min(bound, self.service.slots)
        return bound

    def room(self, now: float) -> int:
        """Return how many more attempts may begin now."""
        room = self.bound(now) - self.in_flight
        if self.service.slots:
            room = min(room, self.service.slots - len(self.service.flights))
        return 0 if room < 0 or self.is_loading(now) else room

    def answered(self, flight: Flight, now: float, tokens: AnswerTokens = NO_TOKENS) -> None:
        """A request of it was answered.

        The pace is how quick it is, not how long the answers are that it happened to give.
        """
        self.has_answered, self.streak, self.pauses = True, 0, 0
        self.answered_at = now
        self.own_pause_until = 0.0
        if not flight.raw_s or flight.is_cold:
            return
        taken_s, raw_s = max(now - flight.since, 1e-3), flight.raw_s
        if flight.is_measured and (known_s := self._expected_s(tokens)):
            if taken_s < SHORTEST_SAMPLE_S:
                return
            raw_s = known_s
        sample = taken_s / raw_s
        if not self.pace or self.is_pace_measured is not flight.is_measured:
            self.pace, self.is_pace_measured = sample, flight.is_measured
        else:
            self.pace += (sample - self.pace) * PACE_WEIGHT

    def _expected_s(self, tokens: AnswerTokens) -> float:
        """Return how long so much takes by the speeds that were measured; 0: that is not known."""
        info = self.info
        if not (tokens.completion_tokens and info.output_tokens_per_s):
            return 0.0
        prompt = max(0, tokens.prompt_tokens - tokens.cached_tokens)
        prompt_s = prompt / info.prompt_tokens_per_s if info.prompt_tokens_per_s else 0.0
        return prompt_s + tokens.completion_tokens / info.output_tokens_per_s

    def failed(self, now: float) -> None:
        """A request of it ended badly, by its fault."""
        self.streak += 1
        if self.streak >= STREAK_BEFORE_PAUSE or self.pauses:
            pause_s = min(MAX_OWN_PAUSE_S, OWN_PAUSE_S * 2.0 ** min(self.pauses, 10))
            self.own_pause_until, self.streak = now + pause_s, 0
            self.pauses += 1


@dataclass(slots=True, eq=False)
class ServiceState:
    """A service that live workers reach, or where placed attempts still run."""

    id: str
    kind: str = ""
    machine: str = ""
    url: str = ""
    is_cloud: bool = False
    slots: int = 0
    default: str = ""
    why: str = ""
    #: how many models it holds at once, as was seen when one had to make room; until then, and
    #: when that is long ago (monotonic), it is taken to have room for another
    most_loaded: int = 0
    was_full: float = -math.inf
    models: dict[str, ModelState] = field(default_factory=dict)
    #: while it is down: plain names of what it offered before
    awaited: frozenset[str] = frozenset()
    #: worker id -> what it told last, and who that is; the newest last
    told: dict[str, tuple[WorkerState, OfferedService]] = field(default_factory=dict)
    #: task id -> its attempt
    flights: dict[str, Flight] = field(default_factory=dict)
