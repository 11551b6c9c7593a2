"""The LLM services that mesh workers reach: what they offer, and what runs there now.

A service is known by its id, however many workers reach it: what these tell is merged. In flight
are the placed attempts of all of them. The table decides nothing but whether one more attempt has
room; who gets it is `core.broker.routing`'s.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct, structs

from d8mesh.core.broker.budgets import BudgetBook
from d8mesh.core.broker.standings import Decision
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import Measured, OfferedModel, OfferedService, Services
from d8mesh.core.protocol.model_names import plain_name

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
#: Conversations and decisions that are remembered; about 10 MB.
MAX_CONVERSATIONS: Final = 10_000
MAX_DECISIONS: Final = 10_000
#: A model that is loaded must be there after the time that takes, so many times, and this much.
WARM_FACTOR: Final = 2.0
WARM_GRACE_S: Final = 5.0
#: A model that goes within this time of another's coming made room for that.
EVICTION_S: Final = 5.0
#: How much the newest sample counts for how long requests really take.
PACE_WEIGHT: Final = 0.2


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
    #: live workers that reach it and do not say that it is paused
    reach: dict[str, WorkerState] = field(default_factory=dict)
    #: what is told of a pause; empty if somebody reaches it
    paused: str = ""
    paused_since: float = 0.0
    #: the last word of a worker was that it is
    is_paused_told: bool = False
    in_flight: int = 0
    #: it has answered since it is known here
    has_answered: bool = False
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


class ServiceTable:
    """All services, and the placed attempts that run there."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceState] = {}
        #: task types that live workers answer by services -> how many such workers
        self.types: dict[str, int] = {}
        #: (service, model) -> what its account allows: kept while nobody reaches it, too
        self._budgets: dict[tuple[str, str], BudgetBook] = {}
        self._types_of: dict[str, frozenset[str]] = {}
        #: task id -> its placed attempt
        self.flights: dict[str, Flight] = {}
        #: plain name -> models of that name, and digest -> models of that content
        self.by_name: dict[str, list[ModelState]] = {}
        self.by_digest: dict[str, list[ModelState]] = {}
        #: what a wish needs -> the models that may run it, as `candidates.tiers` found them
        self.tiers: dict[tuple[object, ...], list[list[ModelState]]] = {}
        #: the text of a wish -> all of these, as `candidates.concerned` found them
        self.concerned: dict[str, frozenset[ModelState]] = {}
        #: something changed that may let any waiting task begin, or one that these models run
        self.is_stirred = False
        self.stirred: set[ModelState] = set()
        #: plain name of a model whose last worker has gone -> when (monotonic)
        self.gone: dict[str, float] = {}
        #: conversation -> service and model that had its last request
        self.conversations: OrderedDict[str, tuple[str, str]] = OrderedDict()
        #: plain name -> when somebody who waits at a screen last asked it
        self.interactive: dict[str, float] = {}
        self._decisions: OrderedDict[str, list[Decision]] = OrderedDict()

    # ------------------------------------------------------------------ what is offered

    def answers(self, kind: str) -> bool:
        """Return whether services answer a task type."""
        return kind in self.types

    def tell(self, worker: WorkerState, offer: Services, now: float) -> None:
        """Take in all that a worker reaches."""
        self._count_types(worker.worker_id, frozenset(offer.types if offer.services else ()))
        named = {service.id: service for service in offer.services}
        for service in list(self.services.values()):
            if service.id not in named and service.told.pop(worker.worker_id, None) is not None:
                self._merge(service, now)
        for service_id, told in named.items():
            service = self.services.get(service_id) or ServiceState(service_id)
            self.services[service_id] = service
            service.told.pop(worker.worker_id, None)
            service.told[worker.worker_id] = (worker, told)
            self._tell_budgets(service_id, worker.worker_id, told.models, now)
            self._merge(service, now)
        self._reindex()

    def measured(self, worker: WorkerState, message: Measured, now: float) -> None:
        """Take in how models of one service are now."""
        service = self.services.get(message.service)
        if service is None or worker.worker_id not in service.told:
            return
        _, told = service.told.pop(worker.worker_id)
        models = {model.name: model for model in told.models}
        before = [(m.name, m.digest, m.can, m.is_loaded) for m in told.models]
        models.update((model.name, model) for model in message.models)
        told = structs.replace(told, models=list(models.values()))
        service.told[worker.worker_id] = (worker, told)
        self._tell_budgets(service.id, worker.worker_id, message.models, now)
        self._merge(service, now)
        if before != [(m.name, m.digest, m.can, m.is_loaded) for m in told.models]:
            self._reindex()

    def leave(self, worker: WorkerState, now: float) -> None:
        """A worker reaches nothing any more."""
        self.tell(worker, Services([], [], [], [], []), now)

    def _count_types(self, worker_id: str, types: frozenset[str]) -> None:
        before = self._types_of.pop(worker_id, frozenset())
        for kind in before - types:
            self.types[kind] -= 1
            if not self.types[kind]:
                del self.types[kind]
        for kind in types - before:
            self.types[kind] = self.types.get(kind, 0) + 1
        if types:
            self._types_of[worker_id] = types

    def _tell_budgets(
        self, service_id: str, worker_id: str, models: Iterable[OfferedModel], now: float
    ) -> None:
        for model in models:
            if model.budget is not None:
                book = self._budgets.setdefault((service_id, model.name), BudgetBook())
                book.tell(worker_id, model.budget, now)

    def _merge(self, service: ServiceState, now: float) -> None:
        """Make one of what the workers tell of a service; the newest word is the last one."""
        self.is_stirred = True
        if not service.told:
            self._go(service, now)
            return
        _, newest = next(reversed(service.told.values()))
        service.kind, service.machine, service.url = newest.kind, newest.machine, newest.url
        service.is_cloud, service.default = newest.is_cloud, newest.default
        bounds = [told.slots for _, told in service.told.values()]
        service.slots = 0 if 0 in bounds else max(bounds)
        service.why = newest.why if all(told.why for _, told in service.told.values()) else ""
        before = [model for model in service.models.values() if model.info.is_loaded]
        offers: dict[str, list[tuple[WorkerState, OfferedModel]]] = {}
        for worker, told in service.told.values():
            for info in told.models:
                offers.setdefault(info.name, []).append((worker, info))
        missing = [model for name, model in service.models.items() if name not in offers]
        if offers or missing:
            is_down = not offers and service.why
            service.awaited = frozenset(model.plain for model in missing if is_down)
        for model in missing:
            self._drop(model, None if offers else now)
        for name, offered in offers.items():
            self._merge_model(service, name, offered, now)
        self._note_fullness(service, before, now)

    def _note_fullness(self, service: ServiceState, before: list[ModelState], now: float) -> None:
        """Learn how many models a service holds: one went as another came."""
        models = service.models.values()
        loaded = sum(model.info.is_loaded for model in models)
        is_coming = any(
            model.is_loading(now)
            or (model.info.is_loaded and now - model.loaded_since < EVICTION_S)
            for model in models
        )
        has_gone = any(not model.info.is_loaded for model in before)
        if has_gone and is_coming:
            loading = sum(model.is_loading(now) for model in models)
            service.most_loaded, service.was_full = max(1, loaded + loading), now
        elif loaded > service.most_loaded:
            service.most_loaded = loaded

    def _merge_model(
        self,
        service: ServiceState,
        name: str,
        offered: list[tuple[WorkerState, OfferedModel]],
        now: float,
    ) -> None:
        newest = offered[-1][1]
        known = max((model for _, model in offered), key=lambda model: model.requests)
        info = structs.replace(
            newest,
            slots=max(model.slots for _, model in offered),
            load_s=newest.load_s or known.load_s,
            prompt_tokens_per_s=known.prompt_tokens_per_s or newest.prompt_tokens_per_s,
            output_tokens_per_s=known.output_tokens_per_s or newest.output_tokens_per_s,
            requests=sum(model.requests for _, model in offered),
            prompt_tokens=sum(model.prompt_tokens for _, model in offered),
            output_tokens=sum(model.output_tokens for _, model in offered),
        )
        model = service.models.get(name)
        if model is None:
            model = service.models[name] = ModelState(service, name, plain_name(name), info)
            flights = service.flights.values()
            model.in_flight = sum(flight.model == name for flight in flights)
        if info.is_loaded and not model.info.is_loaded:
            model.loaded_since = now
        model.info = info
        if info.is_loaded:
            model.loaded_by = model.warming_until = 0.0
        model.budget = None if info.budget is None else self._budgets.get((service.id, name))
        reach = {w.worker_id: w for w, offer in offered if not offer.paused}
        model.reach = dict(sorted(reach.items()))
        was_told = model.is_paused_told
        model.is_paused_told = bool(newest.paused)
        paused = "" if model.reach else newest.paused
        model.paused_since = now if paused and not model.paused else model.paused_since
        model.paused = paused
        if was_told and not newest.paused:  # the worker's probe has succeeded
            model.own_pause_until, model.streak, model.pauses = 0.0, 0, 0

    def _drop(self, model: ModelState, gone_since: float | None) -> None:
        """A service has not got a model any more; what runs there ends by itself.

        Args:
            gone_since: the service is gone altogether, maybe to be back; None: it was removed.
        """
        del model.service.models[model.name]
        if gone_since is not None:
            self.gone[model.plain] = gone_since

    def _go(self, service: ServiceState, now: float) -> None:
        self.gone.update(dict.fromkeys(service.awaited, now))
        service.awaited = frozenset()
        for model in list(service.models.values()):
            self._drop(model, now)
        if not service.flights:
            del self.services[service.id]

    def _reindex(self) -> None:
        self.tiers.clear()
        self.concerned.clear()
        self.by_name, self.by_digest = {}, {}
        for service_id in sorted(self.services):
            for model in self.services[service_id].models.values():
                self.by_name.setdefault(model.plain, []).append(model)
                if model.info.digest:
                    self.by_digest.setdefault(model.info.digest, []).append(model)
        for plain in self.by_name:
            self.gone.pop(plain, None)

    def forget_gone(self, before: float) -> None:
        """Expect no model back that has been gone since before `before` (monotonic)."""
        self.gone = {plain: at for plain, at in self.gone.items() if at >= before}

    def awaits(self, plain: str) -> bool:
        """Return whether a service that is down now had a model; its workers look for it."""
        return any(plain in service.awaited for service in self.services.values())

    # ------------------------------------------------------------------ what runs there

    def model(self, service_id: str, name: str) -> ModelState | None:
        """Return a model of a service, None if it is not offered now."""
        service = self.services.get(service_id)
        return None if service is None else service.models.get(name)

    def begin(self, task_id: str, flight: Flight) -> None:
        """A placed attempt begins, or is found to run."""
        service = self.services.get(flight.service)
        if service is None:
            service = self.services[flight.service] = ServiceState(flight.service)
        service.flights[task_id] = self.flights[task_id] = flight
        flight.worker.placed += 1
        model = service.models.get(flight.model)
        if model is not None:
            model.in_flight += 1
            model.used = flight.since

    def end(self, task_id: str, now: float, *, is_success: bool | None = None) -> None:
        """A placed attempt has ended, if there was one.

        Args:
            is_success: False: by the service's fault; None: nothing follows for it.
        """
        flight = self.flights.pop(task_id, None)
        if flight is None:
            return
        flight.worker.placed -= 1
        service = self.services[flight.service]
        del service.flights[task_id]
        model = service.models.get(flight.model)
        if model is None:
            if not service.told and not service.flights:
                del self.services[service.id]
            return
        model.in_flight -= 1
        self.stirred.update(service.models.values() if service.slots else (model,))
        if is_success:
            self._has_answered(model, flight, now)
        elif is_success is False and model.info.budget is None:  # an account's bound is no fault
            self._has_failed(model, now)

    def _has_answered(self, model: ModelState, flight: Flight, now: float) -> None:
        model.has_answered, model.streak, model.pauses = True, 0, 0
        model.own_pause_until = 0.0
        if not flight.raw_s or flight.is_cold:
            return
        sample = max(now - flight.since, 1e-3) / flight.raw_s
        if not model.pace or model.is_pace_measured is not flight.is_measured:
            model.pace, model.is_pace_measured = sample, flight.is_measured
        else:
            model.pace += (sample - model.pace) * PACE_WEIGHT

    def _has_failed(self, model: ModelState, now: float) -> None:
        model.streak += 1
        if model.streak >= STREAK_BEFORE_PAUSE or model.pauses:
            pause_s = min(MAX_OWN_PAUSE_S, OWN_PAUSE_S * 2.0 ** min(model.pauses, 10))
            model.own_pause_until, model.streak = now + pause_s, 0
            model.pauses += 1

    # ------------------------------------------------------------------ what is remembered

    def note_conversation(self, conversation: str, model: ModelState) -> None:
        """Remember who has a conversation in memory."""
        if conversation:
            self.conversations[conversation] = (model.service.id, model.name)
            self.conversations.move_to_end(conversation)
            if len(self.conversations) > MAX_CONVERSATIONS:
                self.conversations.popitem(last=False)

    def note_decision(self, decision: Decision) -> None:
        """Remember where an attempt was placed."""
        self._decisions.setdefault(decision.task_id, []).append(decision)
        self._decisions.move_to_end(decision.task_id)
        if len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)

    def decisions_of(self, task_id: str) -> tuple[Decision, ...]:
        """Return where the attempts of a task were placed, oldest first, as far as remembered."""
        return tuple(self._decisions.get(task_id, ()))
