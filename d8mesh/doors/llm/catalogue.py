"""The models of the mesh as doors list and find them, from what the orchestrator remembers.

One question answers many requests: what is known may be a second old, and is the last known
while the broker is being started again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Protocol

from d8mesh.core.protocol.model_names import plain_name, shown_name
from d8mesh.errors import BrokerUnavailableError, D8Error

#: How old what is told may be, and how old what says that there is no such model.
KNOWN_S: Final = 1.0
MISSED_S: Final = 0.1
#: The broker answers in milliseconds; while it is away the last known is told after so long.
CATALOGUE_ASK_S: Final = 3.0
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Asks(Protocol):
    """What asks the orchestrator: `nodes.client.aio.node.AsyncNode`."""

    @property
    def is_connected(self) -> bool:
        """True while it answers."""

    async def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """Ask it something; see `AsyncNode.ask`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAt:
    """A model in the memory of a machine; 0 where that is not told."""

    machine: str
    service: str
    size_vram: int = 0
    #: Unix seconds until which it stays if nobody uses it; infinity: for ever
    expires_at: float = 0.0
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model, whatever the services call it."""

    #: what most services call it
    name: str
    #: all that it is called
    names: tuple[str, ...]
    #: hexadecimal; "" where none is told
    digest: str = ""
    size_bytes: int = 0
    #: RFC 3339; "" where none is told
    modified_at: str = ""
    #: Ollama's object of that name
    details: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    #: in Ollama's words; empty where none is told
    can: frozenset[str] = frozenset()
    context_tokens: int = 0
    is_cloud: bool = False
    loaded: tuple[LoadedAt, ...] = ()
    #: ids of the services that have it
    services: tuple[str, ...] = ()

    def lacks(self, capability: str) -> bool:
        """Return whether it is known that it cannot do that."""
        return bool(self.can) and capability not in self.can


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownService:
    """An LLM service."""

    id: str
    machine: str
    #: it answers now
    is_online: bool
    #: its models may be pulled and removed
    is_managed: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What was told, and when (monotonic)."""

    models: tuple[KnownModel, ...] = ()
    services: tuple[KnownService, ...] = ()
    by_name: Mapping[str, KnownModel] = field(default_factory=dict)
    at: float = -math.inf


class ModelCatalogue:
    """What the doors know of models.

    Args:
        lists_cloud: models of the cloud may be used without being asked for, so they are listed.

    Thread: that of the event loop.
    """

    def __init__(self, mesh: Asks, *, lists_cloud: bool = False) -> None:
        self._mesh, self._lists_cloud = mesh, lists_cloud
        self._known = _Known()
        self._asking: asyncio.Task[_Known] | None = None

    async def models(self) -> Sequence[KnownModel]:
        """Return all that may be asked, those of the LAN first.

        Raises:
            BrokerUnavailableError: the broker is away, and never was there.
        """
        return (await self._fresh(KNOWN_S)).models

    async def named(self) -> dict[str, KnownModel]:
        """Return all that may be asked by each name, as lists show names; raises as `models`."""
        known = await self._fresh(KNOWN_S)
        found: dict[str, KnownModel] = {}
        for model in known.models:
            for name in model.names:
                if known.by_name[plain_name(name)] is model:
                    found[shown_name(name)] = model
        return found

    async def services(self) -> Sequence[KnownService]:
        """Return all services; raises as `models` does."""
        return (await self._fresh(KNOWN_S)).services

    async def find(self, name: str) -> KnownModel | None:
        """Return the model that may be called so; raises as `models` does."""
        plain = plain_name(name)
        found = (await self._fresh(KNOWN_S)).by_name.get(plain)
        return found or (await self._fresh(MISSED_S)).by_name.get(plain)

    async def describe(self, name: str) -> Mapping[str, Any] | None:
        """Return what Ollama's show says of a model; None: nobody has told that yet."""
        try:
            told = await self._mesh.ask("describe", {"name": name}, CATALOGUE_ASK_S)
        except BrokerUnavailableError:
            raise
        except D8Error:
            return None
        return told or None

    def forget(self) -> None:
        """Ask anew: something has just been changed."""
        self._known = replace(self._known, at=-math.inf)

    async def _fresh(self, age_s: float) -> _Known:
        """Return what is known, not older than `age_s` unless the broker is away."""
        is_away = self._known.services and not self._mesh.is_connected
        if is_away or time.monotonic() - self._known.at <= age_s:
            return self._known
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="d8-catalogue")
        # Who leaves does not take it from the others who wait for it.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> _Known:
        try:
            body = await self._mesh.ask("models", {}, CATALOGUE_ASK_S)
            self._known = known_of(body, lists_cloud=self._lists_cloud)
        except BrokerUnavailableError:
            if not self._known.services:
                raise
        finally:
            self._asking = None
        return self._known


def known_of(body: Mapping[str, Any], *, lists_cloud: bool) -> _Known:
    """Return what the orchestrator's answer about models tells."""
    models = [_model(each) for each in body["models"]]
    models = [each for each in models if lists_cloud or not each.is_cloud]
    return _Known(
        tuple(models),
        tuple(_service(each) for each in body["services"]),
        _by_name(models),
        time.monotonic(),
    )


def _by_name(models: Iterable[KnownModel]) -> dict[str, KnownModel]:
    """Return each by every name; what two are called is the one that more services call so."""
    found: dict[str, KnownModel] = {}
    for model in models:
        for name in model.names:
            other = found.setdefault(plain_name(name), model)
            is_nearer = (not model.is_cloud, len(model.services)) > (
                not other.is_cloud,
                len(other.services),
            )
            if is_nearer:
                found[plain_name(name)] = model
    return found


def _model(told: Mapping[str, Any]) -> KnownModel:
    names: dict[str, str] = {}
    for name in told["names"]:
        names.setdefault(plain_name(name), name)
    return KnownModel(
        name=told["name"],
        names=tuple(names.values()),
        digest=told.get("digest") or "",
        size_bytes=told.get("size_bytes") or 0,
        modified_at=told.get("modified_at") or "",
        details=told.get("details") or _NONE,
        can=frozenset(told.get("can") or ()),
        context_tokens=told.get("context_tokens") or 0,
        is_cloud=bool(told.get("is_cloud")),
        loaded=tuple(_loaded(each) for each in told["places"] if each.get("is_loaded")),
        services=tuple(dict.fromkeys(each["service"] for each in told["places"])),
    )


def _loaded(place: Mapping[str, Any]) -> LoadedAt:
    left_s = place.get("expires_s") or 0
    return LoadedAt(
        machine=place["machine"],
        service=place["service"],
        size_vram=place.get("vram_bytes") or 0,
        expires_at=math.inf if left_s < 0 else time.time() + left_s if left_s else 0.0,
        context_length=place.get("context_tokens") or 0,
    )


def _service(told: Mapping[str, Any]) -> KnownService:
    return KnownService(
        id=told["id"],
        machine=told["machine"],
        is_online=told["state"] == "online",
        is_managed=bool(told.get("is_managed")),
    )
