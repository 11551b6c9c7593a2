"""How services and placed tasks stand, as data for people: what is told is what is decided by."""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker import candidates, routing
from d8mesh.core.broker.estimates import Weighed
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.routing import Ask
from d8mesh.core.broker.service_states import (
    ModelState,
    ServiceState,
)
from d8mesh.core.broker.standings import ModelView, Obstacle, ServiceView, Standing
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.core.protocol.task import Spec
from d8mesh.core.protocol.wish import Wish, parse_wish

#: Batches of one line whose waiting tasks are counted, for each attempt that is placed; the others
#: count as one task each, as every chat is.
COUNTED_WAITING: Final = 32


def ask_of(
    state: BrokerState, spec: Spec, accepted_at: float, failed_at: frozenset[str] = frozenset()
) -> Ask:
    """Return what is asked for a task of this spec that waits.

    Args:
        accepted_at: Unix seconds; what this start of the orchestrator has found waiting waits for
            those that had its model, who may not be back yet.
    """
    wish, lane = parse_wish(spec.model), state.queue.lanes.get(LaneKey.of(spec))
    waiting = 1 if lane is None else max(1, lane.count(spec.priority, COUNTED_WAITING))
    is_old = state.registry.is_young and (wish.is_strict or accepted_at < state.started_at)
    services, names = state.services, [plain_name(name) for name in wish.models]
    is_expected = bool(names) and (
        is_old
        or any(name in services.gone for name in names)
        or (wish.is_strict and any(services.awaits(name) for name in names))
    )
    return Ask(wish, spec.priority, failed_at, waiting, is_expected)


def standings(
    state: BrokerState,
    spec: Spec,
    failed_at: frozenset[str] = frozenset(),
    accepted_at: float | None = None,
) -> list[Standing]:
    """Return how each service stands to a task of this spec that waits.

    One for each model that the wish may mean, and one without a model for each other service.

    Args:
        failed_at: services where attempts of it ended badly.
        accepted_at: Unix seconds; None: just now.
    """
    table, cloud = state.services, state.policy.cloud
    ask = ask_of(state, spec, state.at if accepted_at is None else accepted_at, failed_at)
    weighed = routing.choose(table, ask, cloud, state.now).weighed
    told = [standing_of(each, state.now) for each in weighed]
    seen = {(each.service, each.model) for each in told}
    for tier in candidates.tiers(table, ask.wish, is_expected=ask.is_expected):
        for model in tier:
            if (model.service.id, model.name) not in seen:
                told.append(_without(model.service, model, Obstacle.SECOND_CHOICE, state.now))
                seen.add((model.service.id, model.name))
    covered = {service for service, _ in seen}
    rest = [each for each in table.services.values() if each.id not in covered]
    return told + [_of_other(service, ask.wish, state.now) for service in rest]


def standing_of(each: Weighed, now: float) -> Standing:
    """Return a candidate as it is told."""
    model, service = each.model, each.model.service
    return Standing(
        service=service.id,
        machine=service.machine,
        kind=service.kind,
        is_cloud=service.is_cloud,
        model=model.name,
        obstacle=each.obstacle,
        is_loaded=model.is_loaded,
        in_flight=model.in_flight,
        slots=model.bound(now),
        until_s=each.until_s,
        why=each.why,
        estimate_s=each.estimate_s,
    )


def _without(
    service: ServiceState,
    model: ModelState | None,
    obstacle: Obstacle,
    now: float,
    *,
    why: str = "",
    lacks: tuple[str, ...] = (),
) -> Standing:
    return Standing(
        service=service.id,
        machine=service.machine,
        kind=service.kind,
        is_cloud=service.is_cloud,
        model="" if model is None else model.name,
        obstacle=obstacle,
        is_loaded=model is not None and model.is_loaded,
        in_flight=len(service.flights) if model is None else model.in_flight,
        slots=service.slots if model is None else model.bound(now),
        why=why,
        lacks=lacks,
    )


def _of_other(service: ServiceState, wish: Wish, now: float) -> Standing:
    """Say why a service is not looked at for a wish."""
    if not service.told:
        return _without(service, None, Obstacle.AWAY, now)
    if wish.machine and not candidates.is_at(service, wish.machine):
        return _without(service, None, Obstacle.ELSEWHERE, now)
    if not service.models and (service.why or not wish.models):
        return _without(service, None, Obstacle.DOWN, now, why=service.why)
    names = {plain_name(name) for name in wish.models}
    named = [model for model in service.models.values() if model.plain in names]
    meant = named if wish.models else list(service.models.values())
    needs = candidates.needs_of(wish)
    if meant and all(model.info.can and not needs <= set(model.info.can) for model in meant):
        lacks = tuple(sorted(needs - set(meant[0].info.can)))
        return _without(service, meant[0], Obstacle.LACKS, now, lacks=lacks)
    return _without(service, None, Obstacle.NOT_INSTALLED, now)


def views(state: BrokerState) -> list[ServiceView]:
    """Return every service that is known, as it stands now."""
    return [_view(each, state.now) for _, each in sorted(state.services.services.items())]


def _view(service: ServiceState, now: float) -> ServiceView:
    models = (_model_view(model, now) for _, model in sorted(service.models.items()))
    return ServiceView(
        id=service.id,
        kind=service.kind,
        machine=service.machine,
        url=service.url,
        is_cloud=service.is_cloud,
        workers=tuple(sorted(service.told)),
        slots=service.slots,
        in_flight=len(service.flights),
        default=service.default,
        why=service.why,
        awaited=tuple(sorted(service.awaited)),
        models=tuple(models),
    )


def _model_view(model: ModelState, now: float) -> ModelView:
    info, own_s = model.info, model.own_pause_until - now
    own = "its last requests failed" if own_s > 0.0 else ""
    return ModelView(
        name=model.name,
        digest=info.digest,
        can=tuple(info.can),
        size_bytes=info.size_bytes,
        is_loaded=model.is_loaded,
        is_loading=model.is_loading(now),
        slots=info.slots,
        in_flight=model.in_flight,
        load_s=info.load_s,
        prompt_tokens_per_s=info.prompt_tokens_per_s,
        output_tokens_per_s=info.output_tokens_per_s,
        requests=info.requests,
        paused=model.paused or own,
        probed_in_s=own_s if own and not model.paused else None,
        budget=None if model.budget is None else model.budget.left(now),
    )
