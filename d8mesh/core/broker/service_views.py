"""How the services stand, for people: the table and the policy, told as plain data."""

from __future__ import annotations

from d8mesh.core.broker import routing
from d8mesh.core.broker.queue import COUNTED_BATCHES, lane_key
from d8mesh.core.broker.routing import Ask, Weighed
from d8mesh.core.broker.services import ModelState, ServiceState
from d8mesh.core.broker.standings import ModelView, Obstacle, ServiceView, Standing
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.core.protocol.task import Spec
from d8mesh.core.protocol.wish import Wish, parse_wish


def views(state: BrokerState) -> list[ServiceView]:
    """Return every service that is known."""
    return [_view(service, state.now) for service in state.services.services.values()]


def _view(service: ServiceState, now: float) -> ServiceView:
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
        models=tuple(_model(model, now) for model in service.models.values()),
    )


def _model(model: ModelState, now: float) -> ModelView:
    info = model.info
    return ModelView(
        name=model.name,
        digest=info.digest,
        can=tuple(info.can),
        size_bytes=info.size_bytes,
        is_loaded=info.is_loaded,
        is_loading=not model.is_loaded and (model.in_flight > 0 or now < model.warming_until),
        slots=info.slots,
        in_flight=model.in_flight,
        load_s=info.load_s,
        prompt_tokens_per_s=info.prompt_tokens_per_s,
        output_tokens_per_s=info.output_tokens_per_s,
        requests=info.requests,
        paused=model.paused or ("it failed several times" if now < model.own_pause_until else ""),
        probed_in_s=model.own_pause_until - now if now < model.own_pause_until else None,
    )


def standings(
    state: BrokerState, spec: Spec, failed_at: frozenset[str] = frozenset()
) -> list[Standing]:
    """Return how each service stands to a task that waits.

    Args:
        failed_at: services where attempts of it ended badly.
    """
    wish = parse_wish(spec.model)
    lane = state.queue.lanes.get(lane_key(spec))
    waiting = 1 if lane is None else max(1, lane.count(spec.priority, COUNTED_BATCHES))
    ask = Ask(wish, spec.priority, failed_at, waiting)
    weighed = routing.choose(state.services, ask, state.policy.cloud, state.now).weighed
    found = [standing_of(each, state.now) for each in weighed]
    known = {each.service for each in found}
    others = [each for each in state.services.services.values() if each.id not in known]
    return [*found, *(_passed_over(service, wish) for service in others)]


def standing_of(each: Weighed, now: float) -> Standing:
    """Return a candidate as it was weighed."""
    model = each.model
    return Standing(
        service=model.service.id,
        machine=model.service.machine,
        kind=model.service.kind,
        is_cloud=model.service.is_cloud,
        model=model.name,
        obstacle=each.obstacle,
        is_loaded=model.is_loaded,
        in_flight=model.in_flight,
        slots=model.bound(now),
        until_s=each.until_s,
        why=each.why,
        estimate_s=each.estimate_s,
    )


def _passed_over(service: ServiceState, wish: Wish) -> Standing:
    """Return why a service was not weighed at all."""
    wished = {plain_name(name) for name in wish.models}
    model = next((each for each in service.models.values() if each.plain in wished), None)
    lacks: tuple[str, ...] = ()
    if not service.told:
        obstacle = Obstacle.AWAY
    elif not service.models:
        obstacle = Obstacle.DOWN
    elif model is None and wished:
        obstacle = Obstacle.NOT_INSTALLED
    else:
        can = set(model.info.can) if model is not None else set[str]()
        lacks = tuple(sorted(wish.needs - can))
        obstacle = Obstacle.LACKS if lacks else Obstacle.ELSEWHERE
    return Standing(
        service=service.id,
        machine=service.machine,
        kind=service.kind,
        is_cloud=service.is_cloud,
        model=model.name if model is not None else "",
        obstacle=obstacle,
        in_flight=len(service.flights),
        slots=service.slots,
        why=service.why,
        lacks=lacks,
    )
