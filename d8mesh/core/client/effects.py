"""What the client's brain asks its loop for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from msgspec import Struct

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, Message, Stream, Watch


class Transmit(Struct, frozen=True):
    """Send this to the broker."""

    message: Message


class Settled(Struct, frozen=True):
    """The submit of this submission was accepted, or refused for good."""

    submission: Submission


class Arrived(Struct, frozen=True):
    """Outcomes came in for this submission (`submission.states`, `submission.payloads`)."""

    submission: Submission


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


def merged(outputs: Sequence[Output]) -> Sequence[Output]:
    """Return these with `Watch` messages that follow each other as one.

    The broker answers each with a message of its own, and drops what a client is slow to take.
    """
    if len(outputs) < 2:
        return outputs
    out: list[Output] = []
    ids: list[str] = []
    for output in outputs:
        if type(output) is Transmit and type(output.message) is Watch and output.message.ids:
            ids += output.message.ids
            continue
        if ids:
            out += [Transmit(Watch(part)) for part in parts_of(ids)]
            ids = []
        out.append(output)
    return out + [Transmit(Watch(part)) for part in parts_of(ids)]


def parts_of(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield task ids in parts that fit one message."""
    left = iter(ids)
    while part := list(islice(left, MAX_BATCH_TASKS)):
        yield part
