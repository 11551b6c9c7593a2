"""What is remembered of language models beyond what services offer now: for who lists them.

Models of services that are down or away, and what services tell of a model at length. Nothing of
it is stored, and nothing is decided by it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from d8mesh.core.protocol.messages import OfferedModel
from d8mesh.core.protocol.model_names import plain_name

#: A machine that is switched off over night, or over a weekend, has its models still.
REMEMBERED_S: Final = 4 * 86_400.0
#: Models of services that are away: more are no list for people. About 10 MB.
MAX_AWAY_MODELS: Final = 10_000
#: What is told at length of all models together: some thousand of them.
MAX_DESCRIPTIONS_BYTES: Final = 32 * 1024 * 1024


class AwayModel(Struct, frozen=True):
    """A model of a service that is down or away, as it was told of last."""

    machine: str
    is_cloud: bool
    info: OfferedModel
    #: since when it is away (monotonic seconds)
    since: float


class ModelMemory:
    """Models that nobody offers now, and descriptions of models."""

    def __init__(self) -> None:
        #: (service, name) -> the model, the one that went first is the first
        self._away: OrderedDict[tuple[str, str], AwayModel] = OrderedDict()
        #: digest, or service and name -> what was told; the one asked for least lately is the first
        self._described: OrderedDict[str, bytes] = OrderedDict()
        self._described_bytes = 0

    def leave(self, service: str, model: AwayModel) -> None:
        """A service with this model is down or away."""
        key = (service, model.info.name)
        self._away[key] = model
        self._away.move_to_end(key)
        if len(self._away) > MAX_AWAY_MODELS:
            self._away.popitem(last=False)

    def back(self, service: str) -> None:
        """A service offers models again: what else it had it has no longer."""
        for key in [key for key in self._away if key[0] == service]:
            del self._away[key]

    def forget(self, now: float) -> None:
        """Expect nothing back that has been away for too long."""
        while self._away and next(iter(self._away.values())).since < now - REMEMBERED_S:
            self._away.popitem(last=False)

    def away(self) -> Iterator[tuple[str, AwayModel]]:
        """Yield the services that are away, one for each of their models."""
        return ((service, model) for (service, _), model in self._away.items())

    def describe(self, service: str, info: OfferedModel, payload: bytes) -> None:
        """Take in what a service tells of a model at length."""
        key = _key(service, info)
        self._described_bytes -= len(self._described.pop(key, b""))
        self._described[key] = payload
        self._described_bytes += len(payload)
        while self._described_bytes > MAX_DESCRIPTIONS_BYTES:
            _, dropped = self._described.popitem(last=False)
            self._described_bytes -= len(dropped)

    def description(self, service: str, info: OfferedModel) -> bytes:
        """Return what was told of a model at length, or of another with its content; else b""."""
        key = _key(service, info)
        if key not in self._described:
            return b""
        self._described.move_to_end(key)
        return self._described[key]


def _key(service: str, info: OfferedModel) -> str:
    return info.digest or f"{service}/{plain_name(info.name)}"
