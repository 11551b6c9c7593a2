"""What the broker's brain asks its loop for: a brain does nothing by itself."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from msgspec import Struct

from d8mesh.core.broker.members_view import KeptMember, MembersView
from d8mesh.core.broker.store import Question, StoreAnswer
from d8mesh.core.protocol.messages import Message
from d8mesh.core.protocol.task import Fact


class Peer(NamedTuple):
    """Who a message came from: the transport's routing id, the address, the proven key."""

    routing_id: bytes
    address: str = ""
    key: bytes | None = None


class Send(Struct, frozen=True, gc=False):
    """Send `message` to `peer`; `waits`: only after the facts of this batch are committed."""

    peer: Peer
    message: Message
    waits: bool = True


class Record(Struct, frozen=True, gc=False):
    """Commit `fact` to the store with this batch."""

    fact: Fact


class Load(Struct, frozen=True, gc=False):
    """Ask the store what memory lacks; answered by `Loaded` with the same number.

    `session`: of the client for whom it is asked; empty: the brain wants to know it.
    """

    number: int
    question: Question
    session: str = ""


class Loaded(Struct, frozen=True, gc=False):
    """The answer to a `Load`."""

    number: int
    answer: StoreAnswer


class Fault(Struct, frozen=True, gc=False):
    """Log that something of ours went wrong; who asked was told that, and no more."""

    where: str
    traceback: str


class KeepMembers(Struct, frozen=True, gc=False):
    """Write the file of members; answered by `Dispatcher.kept`.

    `answer` is who is told once that is done, and what.
    """

    members: list[KeptMember]
    answer: Send | None = None


class UseView(Struct, frozen=True, gc=False):
    """Decide by this from now on who may connect."""

    view: MembersView


class Drop(Struct, frozen=True, gc=False):
    """Close the connection of this peer; if it is still there, count that by `code`, if any."""

    peer: Peer
    code: str = ""


class Notice(Struct, frozen=True, gc=False):
    """Tell who runs the orchestrator of somebody at its door.

    `code` says what: why somebody waits or was refused for the first time, or what `join` did
    (``member.approve``, ``member.revoke``, ``member.forget``). `fingerprint` and `name` may be
    empty: no key was shown, nobody told a name. `is_quiet`: it is for the log alone.
    """

    code: str
    address: str
    fingerprint: str
    name: str
    is_quiet: bool = False


_OfMembers: TypeAlias = KeepMembers | UseView | Drop | Notice
Effect: TypeAlias = Send | Record | Load | Fault | _OfMembers
