"""The mesh's language models as programs list them: each once, also those of machines away.

The body is compact, for it is asked for often: `model_report` has what people are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.messages import OfferedModel
from d8mesh.core.protocol.model_names import matching, plain_name

Body = dict[str, object]

#: Models that are told of: the answer shall fit a frame, and nobody reads more.
MAX_CATALOGUE_MODELS: Final = 5000


class _Place(Struct, frozen=True):
    """A model at a service."""

    service: str
    machine: str
    is_cloud: bool
    info: OfferedModel
    #: it is in memory there, or will be soon, for so long (seconds; -1: for ever, 0: not told)
    is_loaded: bool = False
    expires_s: float = 0.0


@dataclass(slots=True)
class _Listed:
    """One model, as all services together have it."""

    places: list[_Place] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All that it is called, the commonest and shortest first."""
        counted: dict[str, int] = {}
        for place in self.places:
            counted[place.info.name] = counted.get(place.info.name, 0) + 1
        return sorted(counted, key=lambda name: (-counted[name], len(name), name))


def catalogue(state: BrokerState) -> Body:
    """Return the body of the ``catalogue`` question."""
    listed = sorted(map(_body, _listed(_places(state))), key=lambda body: str(body["name"]))
    return {
        "models": listed[:MAX_CATALOGUE_MODELS],
        "left_out": max(0, len(listed) - MAX_CATALOGUE_MODELS),
    }


def described(state: BrokerState, name: str) -> Body:
    """Return the body of the ``describe`` question: what a service told of the model at length."""
    for model in _listed(_places(state)):
        if matching(name, model.names) is None:
            continue
        told = (state.services.memory.description(p.service, p.info) for p in model.places)
        payload = next(filter(None, told), None)
        return {"name": model.names[0], "digest": _digest(model), "payload": payload}
    return {"name": None, "digest": None, "payload": None}


def _places(state: BrokerState) -> list[_Place]:
    """Return all models wherever they are; those of services that are away last."""
    places = []
    for _, service in sorted(state.services.services.items()):
        for name, model in sorted(service.models.items()):
            is_loaded = model.info.is_loaded or model.is_loading(state.now)
            left_s = model.expires - state.now if model.info.expires_s > 0 else 0.0
            expires_s = max(left_s, 0.001) if left_s else min(model.info.expires_s, 0.0)
            where = (service.id, service.machine, service.is_cloud)
            assert name == model.name
            places.append(_Place(*where, model.info, is_loaded, expires_s))
    away = state.services.memory.away()
    return places + [_Place(of, each.machine, each.is_cloud, each.info) for of, each in away]


def _listed(places: Iterable[_Place]) -> list[_Listed]:
    """Return the models, each once: those of one digest, else of one name."""
    by_key: dict[str, _Listed] = {}
    for place in places:
        info = place.info
        key = f"digest {info.digest}" if info.digest else f"name {plain_name(info.name)}"
        by_key.setdefault(key, _Listed()).places.append(place)
    return list(by_key.values())


def _digest(model: _Listed) -> str | None:
    return next((place.info.digest for place in model.places if place.info.digest), None)


def _body(model: _Listed) -> Body:
    names, infos = model.names, [place.info for place in model.places]
    return {
        "name": names[0],
        "names": names,
        "digest": _digest(model),
        "size_bytes": max(info.size_bytes for info in infos),
        "modified_at": max(info.modified_at for info in infos),
        "details": next((info.details for info in infos if info.details), {}),
        "can": sorted({each for info in infos for each in info.can}),
        "context_tokens": max(info.context_tokens for info in infos),
        "is_cloud": all(place.is_cloud for place in model.places),
        "loaded": [_loaded(place) for place in model.places if place.is_loaded],
    }


def _loaded(place: _Place) -> Body:
    return {
        "name": place.info.name,
        "machine": place.machine,
        "service": place.service,
        "vram_bytes": place.info.vram_bytes,
        "context_tokens": place.info.context_tokens,
        "expires_s": place.expires_s,
    }
