"""The models of the mesh as doors list and find them, from what the orchestrator remembers.

One question answers many requests: what is known may be a second old, and is the last known
while the broker is being started again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from d8mesh.core.protocol.model_names import plain_name, shown_name
from d8mesh.errors import BrokerUnavailableError

#: How old what is told may be, and how old what says that there is no such model.
KNOWN_S: Final = 1.0
MISSED_S: Final = 0.1
#: The broker answers in milliseconds; while it is away the last known is told after so long.
CATALOGUE_ASK_S: Final = 3.0
#: How long a worker may take to tell of a change that it has made, and how often it is looked for.
SEEN_CHANGE_S: Final = 3.0
CHANGE_LOOK_S: Final = 0.05
_NOTHING_TOLD: Final[Mapping[str, Any]] = MappingProxyType({})
_decode: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


class OrchestratorAsked(Protocol):
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
    details: Mapping[str, Any] = field(default_factory=lambda: _NOTHING_TOLD)
    #: in Ollama's words; empty where none is told
    can: frozenset[str] = frozenset()
    context_tokens: int = 0
    is_cloud: bool = False
    loaded: tuple[LoadedAt, ...] = ()

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
    #: its models may be loaded, pulled and removed
    is_managed: bool
    #: what it has, and what of that is in memory, by plain name
    models: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _ToldModels:
    """What was told of models."""

    models: tuple[KnownModel, ...]
    by_name: Mapping[str, KnownModel]


class ModelCatalogue:
    """What the doors know of models.

    Args:
        lists_cloud: models of the cloud may be used without being asked for, so they are listed.

    Thread: that of the event loop.
    """

    def __init__(self, mesh: OrchestratorAsked, *, lists_cloud: bool = False) -> None:
        self._mesh, self._lists_cloud = mesh, lists_cloud
        self._told: _ToldModels | None = None
        #: when that was (monotonic)
        self._told_at = -math.inf
        self._asking: asyncio.Task[_ToldModels] | None = None

    async def models(self) -> Sequence[KnownModel]:
        """Return all that may be asked, those of machines that are away too.

        Raises:
            BrokerUnavailableError: the broker is away, and never was there.
        """
        return (await self._fresh(KNOWN_S)).models

    async def known_names(self) -> Sequence[str]:
        """Return what most services call those of `models`."""
        return [model.name for model in await self.models()]

    async def named(self) -> dict[str, KnownModel]:
        """Return all that may be asked by each name, as lists show names; raises as `models`."""
        known = await self._fresh(KNOWN_S)
        found: dict[str, KnownModel] = {}
        for model in known.models:
            for name in model.names:
                if known.by_name[plain_name(name)] is model:
                    found[shown_name(name)] = model
        return found

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
            return None
        payload = told.get("payload")
        return _decode(payload) if payload else None

    async def services(self) -> Sequence[KnownService]:
        """Return all services as they are now.

        Raises:
            BrokerUnavailableError: the broker is away.
        """
        body = await self._mesh.ask("models", {}, CATALOGUE_ASK_S)
        return _services(body)

    def forget(self) -> None:
        """Ask anew: something has just been changed."""
        self._told_at = -math.inf

    async def see(self, name: str, *, is_there: bool) -> None:
        """Wait, a short time at most, until a model that was changed is seen to be so."""
        until = time.monotonic() + SEEN_CHANGE_S
        while time.monotonic() < until:
            self.forget()
            if (await self.find(name) is not None) is is_there:
                return
            await asyncio.sleep(CHANGE_LOOK_S)

    async def _fresh(self, age_s: float) -> _ToldModels:
        """Return what is known, not older than `age_s` unless the broker is away."""
        told = self._told
        if told is not None and (
            time.monotonic() - self._told_at <= age_s or not self._mesh.is_connected
        ):
            return told
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="d8-catalogue")
        # Who leaves does not take it from the others who wait for it.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> _ToldModels:
        try:
            body = await self._mesh.ask("catalogue", {}, CATALOGUE_ASK_S)
        except BrokerUnavailableError:
            if self._told is None:
                raise
            return self._told
        finally:
            self._asking = None
        models = [_model(each) for each in body["models"]]
        models = [each for each in models if self._lists_cloud or not each.is_cloud]
        self._told = _ToldModels(tuple(models), _by_name(models))
        self._told_at = time.monotonic()
        return self._told


def _by_name(models: Iterable[KnownModel]) -> dict[str, KnownModel]:
    """Return each by every name; what two are called so is the one of the LAN that is in memory."""
    found: dict[str, KnownModel] = {}
    for model in models:
        for name in model.names:
            other = found.setdefault(plain_name(name), model)
            if (model.is_cloud, -len(model.loaded)) < (other.is_cloud, -len(other.loaded)):
                found[plain_name(name)] = model
    return found


def _model(told: Mapping[str, Any]) -> KnownModel:
    names: dict[str, str] = {}
    for name in told["names"]:
        names.setdefault(plain_name(name), name)
    return KnownModel(
        name=told["name"],
        names=tuple(names.values()),
        digest=told["digest"] or "",
        size_bytes=told["size_bytes"],
        modified_at=told["modified_at"],
        details=told["details"],
        can=frozenset(told["can"]),
        context_tokens=told["context_tokens"],
        is_cloud=told["is_cloud"],
        loaded=tuple(_loaded(each) for each in told["loaded"]),
    )


def _loaded(told: Mapping[str, Any]) -> LoadedAt:
    left_s = told["expires_s"]
    return LoadedAt(
        machine=told["machine"],
        service=told["service"],
        size_vram=told["vram_bytes"],
        expires_at=math.inf if left_s < 0 else time.time() + left_s if left_s else 0.0,
        context_length=told["context_tokens"],
    )


def _services(body: Mapping[str, Any]) -> list[KnownService]:
    """Return the services of an answer about models."""
    has: dict[str, set[str]] = {}
    loaded: dict[str, set[str]] = {}
    for model in body["models"]:
        plain = {plain_name(name) for name in model["names"]}
        for place in model["places"]:
            has.setdefault(place["service"], set()).update(plain)
            if place["is_loaded"]:
                loaded.setdefault(place["service"], set()).update(plain)
    return [
        KnownService(
            id=each["id"],
            machine=each["machine"],
            is_online=each["state"] == "online",
            is_managed=each["is_managed"],
            models=frozenset(has.get(each["id"], ())),
            loaded=frozenset(loaded.get(each["id"], ())),
        )
        for each in body["services"]
    ]
