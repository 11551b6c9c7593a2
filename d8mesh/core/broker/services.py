"""The LLM services that mesh workers reach: what they offer, and what runs there now.

A service is one however many workers reach it, and by whatever id each: what these tell is merged.
In flight are the placed attempts of all of them. Who gets one more is `core.broker.routing`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Iterable
from typing import Final

from msgspec import structs

from d8mesh.core.broker.budgets import BudgetBook
from d8mesh.core.broker.model_memory import AwayModel, ModelMemory
from d8mesh.core.broker.service_names import ServiceNames
from d8mesh.core.broker.service_states import (
    NO_TOKENS,
    AnswerTokens,
    Flight,
    ModelState,
    ServiceState,
)
from d8mesh.core.broker.standings import Decision
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import (
    MAX_NAMES,
    Described,
    Measured,
    OfferedModel,
    OfferedService,
    Services,
)
from d8mesh.core.protocol.model_names import plain_name

#: Conversations and decisions that are remembered; about 10 MB.
MAX_CONVERSATIONS: Final = 10_000
MAX_DECISIONS: Final = 10_000
#: Of one task the newest: one that is given back for want of a budget may be placed without end.
MAX_DECISIONS_OF_TASK: Final = 20
#: Models of one worker, over all its services: each change is merged, and none is to take long.
MAX_MODELS_OF_WORKER: Final = 4096
#: A model that goes within this time of another's coming made room for that.
EVICTION_S: Final = 5.0


class ServiceTable:
    """All services, and the placed attempts that run there."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceState] = {}
        self._names = ServiceNames()
        self.memory = ModelMemory()
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
        self.alike: dict[frozenset[ModelState], frozenset[ModelState]] = {}
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
        who, offered = worker.worker_id, _bounded(offer.services)
        self._count_types(who, frozenset(offer.types if offered else ()))
        self._names.tell(who, worker.peer.address, offered, self.services)
        named = {self._names.kept(who, told.id): told for told in offered}
        for service in list(self.services.values()):
            if service.id not in named and who in service.told:
                _, before = service.told.pop(who)
                self._leave_budgets(service.id, who, before.models)
                self._merge(service, now)
        for service_id, told in named.items():
            service = self.services.get(service_id) or ServiceState(service_id)
            self.services[service_id] = service
            self._hear(service, worker, told, told.models, now)
            self._merge(service, now)
        self._reindex()

    def measured(self, worker: WorkerState, message: Measured, now: float) -> None:
        """Take in how models of one service are now."""
        service = self.services.get(self.kept_id(worker, message.service))
        if service is None or worker.worker_id not in service.told:
            return
        _, told = service.told[worker.worker_id]
        models = {model.name: model for model in told.models}
        for model in message.models:
            if model.name in models or len(models) < MAX_NAMES:
                models[model.name] = model
        told = structs.replace(told, models=list(models.values()))
        names = {model.name for model in message.models}
        if names <= service.models.keys():
            before = _indexed(service, names)
            self._hear(service, worker, told, message.models, now)
            self._merge_models(service, names, now)
            is_other = before != _indexed(service, names)
        else:
            self._hear(service, worker, told, message.models, now)
            self._merge(service, now)
            is_other = True
        if is_other:
            self._reindex()

    def _hear(
        self,
        service: ServiceState,
        worker: WorkerState,
        told: OfferedService,
        changed: Iterable[OfferedModel],
        now: float,
    ) -> None:
        """Note what a worker tells of a service: the newest word of all."""
        service.told.pop(worker.worker_id, None)
        service.told[worker.worker_id] = (worker, told)
        self._tell_budgets(service.id, worker.worker_id, changed, now)

    def described(self, worker: WorkerState, message: Described) -> None:
        """Take in what a service tells of one of its models at length."""
        model = self.model(self.kept_id(worker, message.service), message.model)
        if model is not None:
            self.memory.describe(model.service.id, model.info, message.payload)

    def kept_id(self, worker: WorkerState, told_id: str) -> str:
        """Return the id that a service has here which a worker calls `told_id`."""
        return self._names.kept(worker.worker_id, told_id)

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

    def _leave_budgets(
        self, service_id: str, worker_id: str, models: Iterable[OfferedModel]
    ) -> None:
        for name in {model.name for model in models if model.budget is not None}:
            self._budgets[service_id, name].leave(worker_id)

    def _merge(self, service: ServiceState, now: float) -> None:
        """Make one of what the workers tell of a service; the newest word is the last one."""
        if not service.told:
            self._go(service, now)
            self.is_stirred = True
            return
        all_told = [told for _, told in service.told.values()]
        up = [told for told in all_told if told.models] or all_told
        newest = up[-1]  # of those that find it up
        service.kind, service.machine, service.url = newest.kind, newest.machine, newest.url
        service.is_cloud = any(
            told.is_cloud for told in all_told
        )  # in doubt nothing leaves the LAN
        service.default, service.why = newest.default, newest.why
        bounds = [told.slots for told in up]
        service.slots = 0 if 0 in bounds else max(bounds)
        names = {model.name for told in all_told for model in told.models}
        missing = [model for name, model in service.models.items() if name not in names]
        if names or missing:
            is_down = not names and service.why
            service.awaited = frozenset(model.plain for model in missing if is_down)
        if names:
            self.memory.back(service.id)
        for model in missing:
            self._drop(model, None if names else now)
        self._merge_models(service, names, now)

    def _merge_models(self, service: ServiceState, names: Container[str], now: float) -> None:
        self.is_stirred = True
        before = [model for model in service.models.values() if model.info.is_loaded]
        offers: dict[str, list[tuple[WorkerState, OfferedModel]]] = {}
        for worker, told in service.told.values():
            for info in told.models:
                if info.name in names:
                    offers.setdefault(info.name, []).append((worker, info))
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
        if newest is not model.newest:
            model.newest, model.expires = newest, now + newest.expires_s
        if info.is_loaded and not model.info.is_loaded:
            model.loaded_since = now
        model.info = info
        if info.is_loaded:
            model.loaded_by = model.warming_until = 0.0
        model.budget = None if info.budget is None else self._budgets.get((service.id, name))
        reach = {w.worker_id: w for w, offer in offered if not offer.paused}
        model.reach = dict(sorted(reach.items()))
        was_told = model.is_paused_told
        model.is_paused_told = any(offer.paused for _, offer in offered)
        paused = "" if model.reach else newest.paused
        model.paused_since = now if paused and not model.paused else model.paused_since
        model.paused = paused
        if was_told and not model.is_paused_told:  # the worker's probe has succeeded
            model.own_pause_until, model.streak, model.pauses = 0.0, 0, 0

    def _drop(self, model: ModelState, gone_since: float | None) -> None:
        """A service has not got a model any more; what runs there ends by itself.

        Args:
            gone_since: the service is gone altogether, maybe to be back; None: it was removed.
        """
        service = model.service
        del service.models[model.name]
        if gone_since is not None:
            self.gone[model.plain] = gone_since
            away = AwayModel(service.machine, service.is_cloud, model.info, gone_since)
            self.memory.leave(service.id, away)

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
        self.alike.clear()
        self.by_name, self.by_digest = {}, {}
        for service_id in sorted(self.services):
            for model in self.services[service_id].models.values():
                self.by_name.setdefault(model.plain, []).append(model)
                if model.info.digest:
                    self.by_digest.setdefault(model.info.digest, []).append(model)
        for plain in self.by_name:
            self.gone.pop(plain, None)

    def forget_gone(self, before: float, now: float) -> None:
        """Expect no model back that has been gone since before `before` (monotonic).

        Of accounts that nobody tells of any more, what was used counts as long as it does there.
        """
        self._budgets = {of: book for of, book in self._budgets.items() if book.is_needed(now)}
        self.gone = {plain: at for plain, at in self.gone.items() if at >= before}
        self.memory.forget(now)

    def awaits(self, plain: str = "") -> bool:
        """Return whether a service that is down now had a model; its workers look for it.

        Args:
            plain: its plain name; empty for any model.
        """
        awaited = (service.awaited for service in self.services.values())
        return any(plain in names if plain else names for names in awaited)

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

    def end(
        self,
        task_id: str,
        now: float,
        *,
        is_success: bool | None = None,
        tokens: AnswerTokens = NO_TOKENS,
    ) -> None:
        """A placed attempt has ended, if there was one.

        Args:
            is_success: False: by the service's fault; None: nothing follows for it.
            tokens: how long its answer was.
        """
        flight = self.flights.pop(task_id, None)
        if flight is None:
            return
        flight.worker.placed -= 1
        service = self.services[flight.service]
        del service.flights[task_id]
        model = service.models.get(flight.model)
        if service.slots:
            self.stirred.update(service.models.values())
        if model is None:
            if not service.told and not service.flights:
                del self.services[service.id]
            return
        model.in_flight -= 1
        self.stirred.add(model)
        if flight.is_cold:  # it was to load it, and has, or has not: nobody is to wait for that
            model.loaded_by = model.warming_until = 0.0
        if is_success:
            model.answered(flight, now, tokens)
        elif is_success is False:
            model.failed(now)

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
        kept = self._decisions.setdefault(decision.task_id, [])
        kept.append(decision)
        del kept[:-MAX_DECISIONS_OF_TASK]
        self._decisions.move_to_end(decision.task_id)
        if len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)

    def decisions_of(self, task_id: str) -> tuple[Decision, ...]:
        """Return where the attempts of a task were placed, oldest first, as far as remembered."""
        return tuple(self._decisions.get(task_id, ()))


def _bounded(offered: list[OfferedService]) -> list[OfferedService]:
    """Return services with as many models as one worker may have, the first ones."""
    left, found = MAX_MODELS_OF_WORKER, []
    for each in offered:
        cut = each if len(each.models) <= left else structs.replace(each, models=each.models[:left])
        left -= len(cut.models)
        found.append(cut)
    return found


def _indexed(service: ServiceState, names: Collection[str]) -> list[tuple[object, ...]]:
    """Return of models what decides which wishes they may run."""
    infos = [service.models[name].info for name in names]
    return [(info.digest, info.can, info.is_loaded) for info in infos]
