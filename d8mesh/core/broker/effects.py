"""What the broker's brain asks its loop for: a brain does nothing by itself."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from msgspec import Struct

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
    """Commit `fact` to the journal with this batch."""

    fact: Fact


class Load(Struct, frozen=True, gc=False):
    """Fetch from the journal what memory lacks; answered by `Loaded` with the same number.

    `what` is one of the journal's queries, `args` its arguments.
    """

    number: int
    what: str
    args: tuple[object, ...]


class Loaded(Struct, frozen=True, gc=False):
    """The answer to a `Load`; `error` is empty when `rows` hold the answer."""

    number: int
    rows: list[tuple[object, ...]]
    error: str = ""


Effect: TypeAlias = Send | Record | Load
