"""What is told about the mesh's language models: every model, where it is, who waits for it.

Models are one if they have the same digest, whatever the services call them; where none is told,
if they have the same name. What a service had that is down is told of with it, until it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import structs

from d8mesh.core.broker import service_views
from d8mesh.core.broker.obstacles import MANAGED_KINDS
from d8mesh.core.broker.queue import COUNTED_BATCHES
from d8mesh.core.broker.standings import BudgetLeft, ModelView, ServiceView
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.core.protocol.wish import parse_wish

Body = dict[str, object]

#: Models of services that are told of: the answer shall fit a frame, and nobody reads more.
MAX_PLACES_TOLD: Final = 20_000


@dataclass(slots=True)
class _Model:
    """One model, as all services together have it."""

    places: list[tuple[ServiceView, ModelView]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All that it is called, the commonest and shortest first."""
        counted: dict[str, int] = {}
        for _, model in self.places:
            counted[model.name] = counted.get(model.name, 0) + 1
        return sorted(counted, key=lambda name: (-counted[name], len(name), name))


def models(state: BrokerState) -> Body:
    """Return the body of the ``models`` question."""
    views = sorted(service_views.views(state), key=lambda view: (view.machine, view.id))
    views, left_out = _cut(views)
    grouped = _grouped(views)
    waiting, unnamed = _waiting(state)
    bodies = [_model(model, waiting) for model in grouped]
    bodies.sort(key=lambda body: (body["is_cloud"], str(body["name"])))
    return {
        "models": bodies,
        "services": [_service(view) for view in views],
        "waiting_for_any": unnamed,
        "left_out": left_out,
    }


def _cut(views: list[ServiceView]) -> tuple[list[ServiceView], int]:
    """Return the services with as many of their models as are told, and how many are not."""
    kept: list[ServiceView] = []
    room = MAX_PLACES_TOLD
    for view in views:
        kept.append(structs.replace(view, models=view.models[:room]))
        room -= len(kept[-1].models)
    return kept, sum(len(view.models) for view in views) - (MAX_PLACES_TOLD - room)


def _grouped(views: Sequence[ServiceView]) -> list[_Model]:
    """Return the models, each once."""
    by_key: dict[str, _Model] = {}
    for view in views:
        for model in view.models:
            key = f"digest {model.digest}" if model.digest else f"name {plain_name(model.name)}"
            by_key.setdefault(key, _Model()).places.append((view, model))
    _add_awaited(by_key, views)
    return list(by_key.values())


def _add_awaited(by_key: dict[str, _Model], views: Iterable[ServiceView]) -> None:
    """Add what services had that are down: only its names are known."""
    awaited = [(view, name) for view in views for name in view.awaited]
    if not awaited:
        return
    by_name = {plain_name(name): model for model in by_key.values() for name in model.names}
    for view, name in awaited:
        model = by_name.get(name)
        if model is None:
            model = by_name[name] = by_key[f"name {name}"] = _Model()
        model.places.append((view, ModelView(name=name, slots=0)))


def _waiting(state: BrokerState) -> tuple[dict[str, int], int]:
    """Return how many tasks wait for each model (plain name), and for whichever."""
    by_name: dict[str, int] = {}
    for_any = 0
    for key, lane in state.queue.lanes.items():
        if not lane.mask or not state.services.answers(key.type):
            continue
        count = lane.count(1, COUNTED_BATCHES)
        wished = parse_wish(key.model).models
        if not wished:
            for_any += count
        for name in wished[:1]:
            plain = plain_name(name)
            by_name[plain] = by_name.get(plain, 0) + count
    return by_name, for_any


def _model(model: _Model, waiting: dict[str, int]) -> Body:
    names = model.names
    views = [view for _, view in model.places]
    return {
        "name": names[0],
        "names": names,
        "digest": next((view.digest for view in views if view.digest), None),
        "size_bytes": max(view.size_bytes for view in views) or None,
        "can": sorted({each for view in views for each in view.can}),
        "is_cloud": all(service.is_cloud for service, _ in model.places),
        "slots": sum(view.slots for service, view in model.places if service.workers),
        "in_flight": sum(view.in_flight for view in views),
        "waiting": sum(waiting.get(plain, 0) for plain in {plain_name(name) for name in names}),
        "places": [_place(service, view) for service, view in model.places],
    }


def _place(service: ServiceView, model: ModelView) -> Body:
    return {
        "service": service.id,
        "machine": service.machine,
        "kind": service.kind,
        "is_cloud": service.is_cloud,
        "state": _state(service),
        "name": model.name,
        "is_loaded": model.is_loaded,
        "is_loading": model.is_loading,
        "slots": model.slots,
        "in_flight": model.in_flight,
        "load_s": model.load_s or None,
        "prompt_tokens_per_s": model.prompt_tokens_per_s or None,
        "output_tokens_per_s": model.output_tokens_per_s or None,
        "requests": model.requests,
        "paused": model.paused or None,
        "probed_in_s": model.probed_in_s,
        "budget": _budget(model.budget),
    }


def _service(view: ServiceView) -> Body:
    return {
        "id": view.id,
        "kind": view.kind,
        "machine": view.machine,
        "url": view.url,
        "is_cloud": view.is_cloud,
        "is_managed": view.kind in MANAGED_KINDS,
        "state": _state(view),
        "reason": view.why or None,
        "slots": view.slots or None,
        "in_flight": view.in_flight,
        "default": view.default or None,
        "workers": list(view.workers),
        "models": [model.name for model in view.models],
    }


def _state(view: ServiceView) -> str:
    if not view.workers:
        return "away"
    return "down" if view.why and not view.models else "online"


def _budget(left: BudgetLeft | None) -> Body | None:
    return None if left is None else msgspec.to_builtins(left)
