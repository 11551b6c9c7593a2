"""``POST /api/mesh/exchange``: connections of peers that can reach the REST port only.

The bytes of a link go through a connection of its own to the broker, which sees no difference.
Requests put bytes in and take bytes out; nothing here reads them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta

from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.doors.waiting import Doorbell
from d8mesh.edge.logs import event
from d8mesh.edge.transport.tunnel import (
    AT_HEADER,
    BYTES_TYPE,
    END_HEADER,
    EXCHANGE_PATH,
    FROM_HEADER,
    LINK_HEADER,
    MAX_TUNNEL_BYTES,
    WAIT_HEADER,
)
from d8mesh.errors import BrokerUnavailableError
from d8mesh.http.answers import Refusal, Response
from d8mesh.http.described import AboutCall, HttpReply
from d8mesh.http.routes import Door, HttpRoute, Request

#: The longest a poll may stay open with nothing to say.
MAX_TUNNEL_POLL_S: Final = 20
#: Links at the same time: machines behind a closed port. Each has a connection of its own, which
#: one address (or what hides many machines behind it) cannot take from all others.
MAX_LINKS: Final = 200
MAX_LINKS_OF_ADDRESS: Final = MAX_LINKS // 2
#: A link that nobody asked for this long is closed; its peer opens another.
IDLE_S: Final = 60.0
#: Bytes of one link that wait for the broker, or for the peer to say that they have arrived; then
#: no more are taken in.
MAX_LINK_HELD_BYTES: Final = 2 * MAX_TUNNEL_BYTES
#: How long a request waits for the broker to take what came before it.
ROOM_S: Final = 5.0
#: How long a connection to the broker may take.
BROKER_CONNECT_S: Final = 3.0
#: How often idle links are looked for.
IDLE_LOOK_S: Final = 5.0
_LINK_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
#: Of all that a link can carry: 4 petabytes.
_PLACE_OR_TIME: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
TUNNEL_READ_BYTES: Final = 64 * 1024
_log: Final = logging.getLogger("d8mesh.exchange")
_CountField: TypeAlias = Annotated[str, Meta(pattern=f"^{_PLACE_OR_TIME.pattern}$")]
_EXCHANGED: Final = AboutCall(
    what="Bytes of a connection to the broker, both ways (`docs/PROTOCOL.md`).",
    media=BYTES_TYPE,
    may_be_empty=True,
    headers={
        LINK_HEADER: Annotated[str, Meta(pattern=f"^{_LINK_ID.pattern}$")],
        **dict.fromkeys((AT_HEADER, FROM_HEADER, WAIT_HEADER), _CountField),
        END_HEADER: str,
    },
    answers=(HttpReply(200, None, BYTES_TYPE),),
)


class Exchange:
    """Carries bytes between requests and the broker; made in a running loop, and used there.

    Args:
        endpoint: ``tcp://HOST:PORT`` of the broker.
    """

    def __init__(self, endpoint: str) -> None:
        self._loop = asyncio.get_running_loop()
        parts = urlsplit(endpoint)
        self._broker = parts.hostname or "", parts.port or 0
        self._links: dict[str, Link] = {}
        #: what comes from the broker is read into it, and kept by the link in the same turn
        self._buffer = bytearray(TUNNEL_READ_BYTES)
        self._look = self._loop.call_later(IDLE_LOOK_S, self._close_idle)

    async def exchange(self, request: Request) -> Response:
        """Answer a request: take its bytes and, if it asks for some, bring those of its link.

        Answers to two requests of a link may overtake each other, so each says where its bytes
        stand: those that are here already are passed over.
        """
        link_id = request.fields.get(LINK_HEADER.lower(), "")
        if not _LINK_ID.fullmatch(link_id):
            raise Refusal("http.bad_request", f"{LINK_HEADER}: expected 32 hex digits")
        at, since = _count(request, AT_HEADER), _count(request, FROM_HEADER)
        if at is None and (request.body or since is None):
            raise Refusal("http.bad_request", f"expected {AT_HEADER}, {FROM_HEADER} or both")
        link = self._links.get(link_id)
        if link is None:
            link = self._open(link_id, request.remote_addr or "", at)
        await link.connected()
        if at is not None:
            await link.put(at, request.body)
            if END_HEADER.lower() in request.fields:
                link.end()
        found = b""
        if since is not None:
            wait_s = min(_count(request, WAIT_HEADER) or 0, MAX_TUNNEL_POLL_S)
            found = await link.fetch(since, wait_s)
        return Response(found, content_type=BYTES_TYPE)

    async def close(self) -> None:
        """Close all links."""
        self._look.cancel()
        for link in list(self._links.values()):
            link.end()
        await asyncio.sleep(0)

    def _open(self, link_id: str, peer: str, at: int | None) -> Link:
        """Return a new link; its first request brings its first bytes."""
        if at != 0:
            raise _gone("no such link is open")
        ours = sum(1 for each in self._links.values() if each.peer == peer)
        if len(self._links) >= MAX_LINKS or ours >= MAX_LINKS_OF_ADDRESS:
            raise Refusal(
                "access.flood",
                f"{len(self._links)} links are open, {ours} from there: let the broker's port "
                "through the firewall",
            )
        link = Link(self._loop, peer, self._buffer)
        self._links[link_id] = link

        def forget() -> None:
            if self._links.get(link_id) is link:
                del self._links[link_id]

        link.begin(self._broker, forget)
        return link

    def _close_idle(self) -> None:
        self._look = self._loop.call_later(IDLE_LOOK_S, self._close_idle)
        until = self._loop.time() - IDLE_S
        for link in [link for link in self._links.values() if link.used_at < until]:
            link.end()


class Link(asyncio.BufferedProtocol):
    """One peer's link: its connection to the broker, and what waits on both sides.

    Args:
        peer: the address that it came from, for the log and the bound.
        buffer: shared with others, used within a call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str, buffer: bytearray) -> None:
        self._loop, self.peer, self._buffer = loop, peer, buffer
        self.used_at = loop.time()
        self.polls = 0
        #: bytes of the peer so far; of the broker, before those that are held
        self.taken = self.given = 0
        self._held = bytearray()
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        #: nothing more comes; what has come may still be fetched
        self._is_over = False
        self._is_paused = False
        self._bell = Doorbell(loop)
        self._on_end: Callable[[], None] = lambda: None

    def begin(self, broker: tuple[str, int], on_end: Callable[[], None]) -> None:
        """Connect; `on_end` is called when nobody can have anything of this link any more."""
        self._on_end = on_end
        self._connecting = self._loop.create_task(self._connect(broker))

    async def connected(self) -> None:
        """Wait for the connection to the broker.

        Raises:
            BrokerUnavailableError: there is none.
        """
        self.used_at = self._loop.time()
        if self._transport is None and not self._is_over:
            assert self._connecting is not None
            await asyncio.wait((self._connecting,))
        if self._transport is None:
            raise BrokerUnavailableError("the broker does not answer: it is being started again")

    async def put(self, at: int, body: bytes) -> None:
        """Have these bytes sent, but for those that have been; wait for room."""
        if self._writable is not None:
            await asyncio.wait((self._writable,), timeout=ROOM_S)
            if self._writable is not None:
                raise Refusal("access.flood", "the broker takes no more for now")
        known = self.taken - at
        if known < 0:
            self.end()
            raise _gone(f"bytes are missing before {at}")
        if self._is_over:
            raise _gone("the broker has closed its connection")
        fresh = body[known:] if known else body
        if fresh:
            assert self._transport is not None
            self.taken += len(fresh)
            self._transport.write(fresh)

    async def fetch(self, since: int, wait_s: float) -> bytes:
        """Return what came from the broker, from this byte on; if need be, wait for it.

        What is asked for is kept until a request asks for what follows it. Who waits ends the
        wait of an older poll, which gets nothing: its asker went on to ask anew.
        """
        self.polls += 1
        self._bell.ring()
        poll = self.polls
        self._forget_before(since)
        if wait_s and not self._held and not self._is_over:
            await self._bell.is_rung(wait_s)
        self.used_at = self._loop.time()
        if self.polls != poll:
            return b""
        if self._is_over and not self._held:
            self.end()
            raise _gone("the connection to the broker has ended")
        return bytes(self._held[:MAX_TUNNEL_BYTES])

    def end(self) -> None:
        """Close the connection, once it has taken what it was given; who waits is answered."""
        if self._transport is not None:
            self._transport.close()
        elif self._connecting is not None:
            self._connecting.cancel()
        self._is_over = True
        self._bell.ring()
        self._on_end()

    # ------------------------------------------------------------ called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(MAX_LINK_HELD_BYTES)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._held += memoryview(self._buffer)[:nbytes]
        if len(self._held) >= MAX_LINK_HELD_BYTES and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._bell.ring()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self._is_over = True
        self._bell.ring()

    # ---------------------------------------------------------------------- private

    async def _connect(self, broker: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(BROKER_CONNECT_S):
                await self._loop.create_connection(lambda: self, *broker)
        except OSError:  # a timeout is one
            self.end()
            return
        event(_log, logging.INFO, "exchange.link", peer=self.peer)

    def _forget_before(self, since: int) -> None:
        arrived = since - self.given
        if not 0 <= arrived <= len(self._held):
            self.end()
            raise _gone(f"there is nothing from {since} on")
        if arrived:
            del self._held[:arrived]
            self.given = since
            if self._is_paused and len(self._held) < MAX_LINK_HELD_BYTES:
                self._is_paused = False
                if self._transport is not None:
                    self._transport.resume_reading()


def tunnel_door(exchange: Exchange) -> Door:
    """Return the door of the connections."""
    route = HttpRoute(
        EXCHANGE_PATH,
        exchange.exchange,
        method="POST",
        takes=BYTES_TYPE,
        max_body_bytes=MAX_TUNNEL_BYTES,
        ends_with_caller=True,
        described=_EXCHANGED,
    )
    return Door(routes=(route,), scopes=frozenset({TokenScope.WORK, TokenScope.LINK}))


def _count(request: Request, header: str) -> int | None:
    """Return the number of a header; None without one."""
    text = request.fields.get(header.lower())
    if text is None:
        return None
    if not _PLACE_OR_TIME.fullmatch(text):
        raise Refusal("http.bad_request", f"{header}: saw {text[:32]!r}, expected a number")
    return int(text)


def _gone(why: str) -> Refusal:
    return Refusal("http.gone", f"{why}: connect anew")
