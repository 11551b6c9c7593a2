"""What the worker's brain asks its loop for, and the rows that travel between them."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from d8mesh.core.protocol.messages import Message, Placement

#: One attempt that ended: link, task id, token, kind, payload, duration_s. A plain tuple, as a
#: hundred thousand a second are made; it is taken apart by name in one place.
Ended: TypeAlias = tuple[str, str, bytes, int, bytes, float]
#: One piece of partial output: link, task id, token, number within the attempt, payload.
OutputPiece: TypeAlias = tuple[str, str, bytes, int, bytes]
#: The kind of an attempt that ended with nothing to report: it was cancelled.
DROPPED: Final = -1
#: The kind of an attempt whose service is busy or down: given back, no failure.
UNAVAILABLE: Final = -2


class Attempt(Struct, frozen=True, gc=False):
    """One attempt to run."""

    link: str
    type: str
    timeout_s: float
    is_listened: bool
    id: str
    token: bytes
    payload: bytes
    #: None: it runs in a slot
    placement: Placement | None = None


class KeptResult(NamedTuple):
    """One result as it lies in the outbox."""

    broker_id: str
    task_id: str
    token: bytes
    kind: int
    payload: bytes


class Running(NamedTuple):
    """What a slot is at: seconds of the monotonic clock, and the attempt's time."""

    attempt: Attempt
    started: float


class SendOn(Struct, frozen=True, gc=False):
    """Send `message` on `link`, after the `Keep` before it in the same list."""

    link: str
    message: Message


class Start(Struct, frozen=True, gc=False):
    """Run these when a slot is free, in this order; each ends in `finished`, once."""

    attempts: list[Attempt]


class StartPlaced(Struct, frozen=True, gc=False):
    """Run these at their services, now and beside the slots; each ends in `finished`, once."""

    attempts: list[Attempt]


class WarmUp(Struct, frozen=True, gc=False):
    """Load a model at a service: tasks for it will come."""

    placement: Placement


class Abort(Struct, frozen=True, gc=False):
    """Cancel the attempts with these tokens; they still end in `finished`."""

    tokens: list[bytes]


class TakeBack(Struct, frozen=True, gc=False):
    """Take up to `count` attempts of `link` that have not started, newest first.

    Answered by `taken_back`. `is_of_all`: also those that wait to run at a service.
    """

    link: str
    count: int
    is_of_all: bool = False


class Listened(Struct, frozen=True, gc=False):
    """Somebody listens to these tasks, or nobody does any more."""

    ids: list[str]
    is_on: bool


class Keep(Struct, frozen=True, gc=False):
    """Write these to the outbox; they are on the disk before the next `Send`."""

    results: list[KeptResult]


class Forget(Struct, frozen=True, gc=False):
    """Delete the results with these tokens from the outbox."""

    tokens: list[bytes]


class Rebuild(Struct, frozen=True, gc=False):
    """The link is dead: close its transport and connect again."""

    link: str
    why: str


class Joined(Struct, frozen=True, gc=False):
    """The session of `link` stands."""

    link: str
    broker_id: str


class Retire(Struct, frozen=True, gc=False):
    """Close this link for good: another one leads to the same broker."""

    link: str
    broker_id: str


class Trouble(Struct, frozen=True, gc=False):
    """Something people should know: an error code and a sentence."""

    link: str
    code: str
    text: str


_OfAttempts: TypeAlias = Start | StartPlaced | WarmUp | Abort | TakeBack | Listened
_OfResults: TypeAlias = Keep | Forget
WorkerEffect: TypeAlias = _OfAttempts | _OfResults | SendOn | Rebuild | Joined | Retire | Trouble
