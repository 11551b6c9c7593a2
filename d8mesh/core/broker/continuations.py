"""What the brain goes on with later, as data: when a time has come, or the store has answered."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from d8mesh.core.broker.effects import Peer


class Retry(Struct, frozen=True, gc=False):
    """The pause of a task is over."""

    task_id: str


class PassDeadline(Struct, frozen=True, gc=False):
    """The tasks of a batch that are not finished are too late."""

    session: str
    first: int


class SayOwed(Struct, frozen=True, gc=False):
    """No hand-out came with which a worker's results could be acknowledged."""

    worker_id: str


class CatchUp(Struct, frozen=True, gc=False):
    """Who could not be sent partial output is sent what is kept."""


Timer: TypeAlias = Retry | PassDeadline | SayOwed | CatchUp


class PageIn(Struct, frozen=True, gc=False):
    """Take the payloads of a batch into memory."""

    session: str
    first: int


class Prune(Struct, frozen=True, gc=False):
    """Forget finished batches."""


class TellOutcomes(Struct, frozen=True, gc=False):
    """Tell a client how tasks ended."""

    session: str
    ids: list[str]


class ThankForReport(Struct, frozen=True, gc=False):
    """A polling worker reported a task that is not open."""

    peer: Peer
    request: int


class ShowTask(Struct, frozen=True):
    """Answer with how a finished task stands, and with `more`; `is_brief`: its state only."""

    peer: Peer
    request: int
    id: str
    more: dict[str, object] = {}
    is_brief: bool = False


class ShowDetails(Struct, frozen=True, gc=False):
    """Answer with how a task stands, its input and all that went wrong."""

    peer: Peer
    request: int
    id: str


class ShowPage(Struct, frozen=True, gc=False):
    """Answer with a page of tasks, those in a state only; `is_queue`: as the queue's."""

    peer: Peer
    request: int
    cursor: str
    state: str = ""
    is_queue: bool = False


class Replay(Struct, frozen=True, gc=False):
    """Submit a finished task again, as number `n` of a session."""

    peer: Peer
    request: int
    id: str
    session: str
    n: int


#: What a client waits for; a fault on the way is told to it.
Reply: TypeAlias = ThankForReport | ShowTask | ShowDetails | ShowPage | Replay
Continuation: TypeAlias = PageIn | Prune | TellOutcomes | Reply
