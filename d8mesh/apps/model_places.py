"""Which services `models pull` and `models remove` mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.apps.tables import size_text
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.errors import BackendUnavailableError, ConfigError
from d8mesh.setting_forms import MODEL_PATTERN
from d8mesh.words import tr

#: Of machines that are there so many are named.
MACHINES_NAMED: Final = 12
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Whether a model fits a service; None: that is not known."""

    fits: bool | None = None
    why: str = ""
    disk_free_bytes: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the orchestrator tells of models and services."""

    models: Sequence[Facts]
    services: Sequence[Facts]

    @property
    def managed(self) -> list[Facts]:
        """The services whose models can be changed."""
        return [each for each in self.services if each["is_managed"]]

    def place_of(self, service: Facts, name: str) -> Facts | None:
        """Return what is known of a model at a service; None: it does not have it."""
        plain = plain_name(name)
        places: list[Facts] = [each for model in self.models for each in model["places"]]
        for place in places:
            if place["service"] == service["id"] and plain_name(place["name"]) == plain:
                return place
        return None

    def size_of(self, name: str) -> int:
        """Return how large a model is, if anybody has it; 0: it is not known."""
        plain = plain_name(name)
        sizes = [
            int(model["size_bytes"] or 0)
            for model in self.models
            if plain in {plain_name(each) for each in model["names"]}
        ]
        return max(sizes, default=0)

    def largest_at(self, service: Facts) -> int:
        """Return the size of the largest model that a service has answered with."""
        sizes = [
            int(model["size_bytes"] or 0)
            for model in self.models
            for place in model["places"]
            if place["service"] == service["id"] and (place["is_loaded"] or place["requests"])
        ]
        return max(sizes, default=0)


def check_name(name: str) -> None:
    """Look at the name of a model that a person gives.

    Raises:
        ConfigError: no model can be called that.
    """
    if not re.fullmatch(MODEL_PATTERN, name, re.ASCII):
        raise ConfigError(f"NAME: expected a model's name such as qwen2.5:3b, not {name[:80]!r}")


def named(overview: Overview, words: Iterable[str]) -> list[Facts]:
    """Return the services on the machines that a person names.

    Raises:
        ConfigError: there is no such machine; those that are there are named.
    """
    found: dict[str, Facts] = {}
    for word in words:
        matching = [each for each in overview.managed if _is_meant(each, word)]
        if not matching:
            raise ConfigError(_unknown(overview, word))
        found |= {each["id"]: each for each in matching}
    return list(found.values())


def _is_meant(service: Facts, word: str) -> bool:
    names = (service["machine"], service["id"], service["url"], *service["workers"])
    return word.casefold() in {str(name).casefold() for name in names}


def _unknown(overview: Overview, word: str) -> str:
    others = [each for each in overview.services if _is_meant(each, word)]
    there = sorted({str(each["machine"]) for each in overview.managed})
    listed = ", ".join(there[:MACHINES_NAMED]) + (", …" if len(there) > MACHINES_NAMED else "")
    if others:
        return f"--on {word}: the models of {others[0]['kind']} cannot be changed there"
    if not there:
        return f"--on {word}: no service is there whose models can be changed"
    return f"--on {word}: no such machine; there are: {listed}"


def online(overview: Overview) -> list[Facts]:
    """Return all services whose models can be changed now.

    Raises:
        BackendUnavailableError: there is none.
    """
    found = [each for each in overview.managed if each["state"] == "online"]
    if not found:
        raise BackendUnavailableError(
            "no service is there whose models can be changed: start a worker where Ollama is"
        )
    return found


def fitting(
    overview: Overview, name: str, rooms: Mapping[str, Room]
) -> tuple[list[Facts], list[str]]:
    """Return the services that a model fits, the best first, and why it does not fit the others.

    Args:
        rooms: what services said, by their ids.
    """
    size = overview.size_of(name)
    ranked: list[tuple[tuple[object, ...], Facts]] = []
    told: list[str] = []
    for service in online(overview):
        room = rooms.get(str(service["id"]), Room())
        has_run_as_large = bool(size) and overview.largest_at(service) >= size
        if room.fits is False:
            why = room.why or tr("it does not fit")
            told.append(tr("{id}: {what}", id=service["machine"], what=why))
        elif room.fits or has_run_as_large:
            ranked.append((_rank(overview, service, name, room), service))
        else:
            what = tr("it is not known how large it is: no machine has it")
            if size:
                what = tr("it is not known whether it fits")
            told.append(tr("{id}: {what}", id=service["machine"], what=what))
    ranked.sort(key=lambda pair: pair[0])
    return [service for _, service in ranked], told


def best(overview: Overview, name: str, rooms: Mapping[str, Room]) -> tuple[Facts, str] | None:
    """Return the service that a model fits best, and why that one; None: it fits nowhere."""
    candidates = []
    for service in online(overview):
        room = rooms.get(str(service["id"]), Room())
        if room.fits is not False:
            candidates.append((_rank(overview, service, name, room), service, room))
    if not candidates:
        return None
    _, service, room = min(candidates, key=lambda each: each[0])
    return service, _why_best(overview, service, name, room, is_only=len(candidates) == 1)


def _rank(overview: Overview, service: Facts, name: str, room: Room) -> tuple[object, ...]:
    """Return what is compared: who has it not, has most memory, has run the largest, has room."""
    has_it = overview.place_of(service, name) is not None
    return (
        has_it,
        room.fits is None,
        -(room.memory_bytes or 0),
        -overview.largest_at(service),
        -(room.disk_free_bytes or 0),
        str(service["machine"]),
        str(service["id"]),
    )


def _why_best(overview: Overview, service: Facts, name: str, room: Room, *, is_only: bool) -> str:
    if is_only:
        return tr("it is the only one that can take it")
    if room.memory_bytes:
        return tr("no other has more memory: {size}", size=size_text(room.memory_bytes))
    largest = overview.largest_at(service)
    if largest:
        return tr("no other has run a larger model: {size}", size=size_text(largest))
    return tr("nothing is known of their memory: the first by name")
