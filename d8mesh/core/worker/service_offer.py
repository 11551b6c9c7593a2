"""What a worker tells of its LLM services, and what of that is still to be told.

Small changes are told together, after a pause, as `Measured`. Told at once are other types, before
they are offered to be run in slots, and a model that is paused: what failed there is given back
after it and must not come again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from d8mesh.core.protocol.messages import (
    MAX_NAMES,
    MAX_SERVICES,
    Budget,
    Described,
    Measured,
    OfferedModel,
    OfferedService,
    Services,
)
from d8mesh.core.protocol.service_messages import MAX_DESCRIPTION_BYTES
from d8mesh.core.worker.broker_session import NEVER, BrokerSession
from d8mesh.core.worker.effects import SendOn, WorkerEffect

#: Changes within this long are told together: a measurement comes with each request's end.
TOLD_TOGETHER_S: Final = 0.05
#: All of it is told again after this long: what was lost on its way, or overtaken, is mended.
TOLD_AGAIN_S: Final = 30.0
#: What is said of all models at length, of a few hundred.
MAX_DESCRIBED_BYTES: Final = 16 * 1024 * 1024
#: Of a model that was to leave the memory by now, and has not been seen to: 0 would be "not told".
LEAST_LEFT_S: Final = 0.001


class ServiceOffer:
    """The services of a worker as they are now."""

    def __init__(self) -> None:
        #: when something is to be told (monotonic seconds)
        self.due = NEVER
        #: False until there was a service: most workers have none, and say nothing of them
        self.is_any = False
        self._types: tuple[str, ...] = ()
        self._services: dict[str, OfferedService] = {}
        #: by service the models, each with when it was said: what a budget says gets older
        self._models: dict[str, dict[str, tuple[OfferedModel, float]]] = {}
        #: what is to be told: all, or of some services some models
        self._is_open, self._is_all_new = True, False
        self._told_all = 0.0
        self._changed: dict[str, dict[str, None]] = {}
        #: what is said at length, by content; and of that, what is still to be told
        self._described: dict[tuple[str, str], Described] = {}
        self._untold: list[Described] = []

    def offer(self, types: Iterable[str], services: Iterable[OfferedService], now: float) -> None:
        """Change all of it; it is told with what else changes soon, other types at once."""
        before, answered = self._models, self._types
        self._types = tuple(types)[:MAX_NAMES]
        self._services = {each.id: each for each in list(services)[:MAX_SERVICES]}
        self._models = {
            each.id: {model.name: (model, now) for model in each.models}
            for each in self._services.values()
        }
        self._forget_descriptions()
        if not (self._services or self.is_any):
            return
        self.is_any = self._is_all_new = True
        self._changed.clear()
        is_urgent = answered != self._types or any(
            _is_newly_paused(model, before.get(service, {}))
            for service, models in self._models.items()
            for model, _ in models.values()
        )
        self._tell_by(now if is_urgent else now + TOLD_TOGETHER_S)

    def measured(self, service: str, models: Iterable[OfferedModel], now: float) -> None:
        """Change models of one service; of one that is not offered nothing is told."""
        known = self._models.get(service)
        if known is None:
            return
        for model in models:
            if model.name not in known and len(known) >= MAX_NAMES:
                continue
            is_urgent = _is_newly_paused(model, known)
            known[model.name] = (model, now)
            self._changed.setdefault(service, {})[model.name] = None
            self._tell_by(now if is_urgent else now + TOLD_TOGETHER_S)

    def described(self, service: str, model: str, payload: bytes, now: float) -> None:
        """Tell a model at length, once in each session; one content of two names is one."""
        known = self._models.get(service, {}).get(model)
        size = sum(len(each.payload) for each in self._described.values()) + len(payload)
        if known is None or len(payload) > MAX_DESCRIPTION_BYTES or size > MAX_DESCRIBED_BYTES:
            return
        key = ("", known[0].digest) if known[0].digest else (service, model)
        if key not in self._described:
            self._described[key] = Described(service, model, payload)
            self._untold.append(self._described[key])
            self._tell_by(now + TOLD_TOGETHER_S)

    def _forget_descriptions(self) -> None:
        """Keep what is said at length only of what is offered."""
        there = {
            ("", model.digest) if model.digest else (service, name)
            for service, models in self._models.items()
            for name, (model, _) in models.items()
        }
        self._described = {key: each for key, each in self._described.items() if key in there}

    def _tell_by(self, due: float) -> None:
        self.due = min(self.due, due)

    def tell(
        self, brokers: Iterable[BrokerSession], now: float, *, is_open: bool
    ) -> list[WorkerEffect]:
        """Return what is to be told now.

        Args:
            is_open: whether tasks are taken at all; while they are not, no service is offered.
        """
        if is_open != self._is_open:
            self._is_open, self._is_all_new, self.due = is_open, self.is_any, now
        if now < self.due:
            return []
        up = [broker for broker in brokers if broker.is_welcome]
        told: list[WorkerEffect] = []
        if self._is_all_new or now >= self._told_all + TOLD_AGAIN_S:
            told += [self.told_to(broker, now) for broker in up]
            self._told_all = now
        elif self._is_open:
            changes = [
                Measured(service, [self._aged(service, name, now) for name in names])
                for service, names in self._changed.items()
            ]
            told += [SendOn(broker.key, change) for broker in up for change in changes]
        told += [SendOn(broker.key, each) for broker in up for each in self._untold]
        self._untold.clear()
        self._changed.clear()
        self._is_all_new, self.due = False, self._told_all + TOLD_AGAIN_S
        return told

    def all_told(self, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        """Return all that a broker is told that has just welcomed us."""
        descriptions = [SendOn(broker.key, each) for each in self._described.values()]
        return [self.told_to(broker, now), *descriptions]

    def told_to(self, broker: BrokerSession, now: float) -> SendOn:
        """Return all of it for one broker."""
        services = [
            replace(each, models=[self._aged(each.id, name, now) for name in self._models[each.id]])
            for each in self._services.values()
            if self._is_open
        ]
        types, placed = list(self._types) if self._is_open else [], broker.placed
        where = [(each.service, each.model) for each in placed.values()]
        held = ([service for service, _ in where], [model for _, model in where])
        return SendOn(broker.key, Services(types, services, list(placed), *held))

    def _aged(self, service: str, name: str, now: float) -> OfferedModel:
        """Return a model as it would be said now."""
        model, said = self._models[service][name]
        age_s = max(0.0, now - said)
        if not age_s or (model.budget is None and model.expires_s <= 0):
            return model
        left_s = max(model.expires_s - age_s, LEAST_LEFT_S)
        return replace(
            model,
            budget=None if model.budget is None else _aged(model.budget, age_s),
            expires_s=left_s if model.expires_s > 0 else model.expires_s,
        )


def _is_newly_paused(model: OfferedModel, before: Mapping[str, tuple[OfferedModel, float]]) -> bool:
    if not model.paused:
        return False
    known = before.get(model.name)
    return known is None or not known[0].paused


def _aged(budget: Budget, age_s: float) -> Budget:
    """Return what a budget is `age_s` after it was said."""
    is_next_day = bool(budget.day_left_s) and budget.day_left_s <= age_s
    return replace(
        budget,
        recent=[(ago_s + age_s, tokens) for ago_s, tokens in budget.recent],
        day_requests=0 if is_next_day else budget.day_requests,
        day_tokens=0 if is_next_day else budget.day_tokens,
        day_left_s=max(0.0, budget.day_left_s - age_s),
        blocked_s=max(0.0, budget.blocked_s - age_s),
    )
