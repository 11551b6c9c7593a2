"""What the client's brain asks its loop for."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from d8mesh.core.messages import Message, Stream
from d8mesh.core.parcel import Parcel


class Transmit(Struct, frozen=True):
    """Send this to the broker."""

    message: Message


class Settled(Struct, frozen=True):
    """The submit of this parcel was accepted, or refused for good."""

    parcel: Parcel


class Arrived(Struct, frozen=True):
    """Outcomes came in for this parcel (`parcel.states`, `parcel.payloads`)."""

    parcel: Parcel


class Answered(Struct, frozen=True):
    """A question was answered."""

    request: int
    code: str
    body: dict[str, object]


class Heard(Struct, frozen=True):
    """Partial output of a task that is listened to."""

    stream: Stream


class Silent(Struct, frozen=True):
    """These tasks, which were listened to, are finished: there is no more partial output."""

    ids: list[str]


class Connected(Struct, frozen=True):
    """The session stands."""

    epoch: int
    broker_id: str


class Lost(Struct, frozen=True):
    """The link is dead or useless: close it and, after a pause, make another."""

    why: str
    pause_s: float = 0.0


class Rejected(Struct, frozen=True):
    """The broker refuses this session for good."""

    code: str
    message: str


Output: TypeAlias = (
    Transmit | Settled | Arrived | Answered | Heard | Silent | Connected | Lost | Rejected
)
