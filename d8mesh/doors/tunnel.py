"""``POST /api/mesh/exchange``: sessions of peers that can reach the REST port only.

The frames of a link go through a ZeroMQ connection of its own to the broker, which sees no
difference. Requests put frames in and take frames out.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from typing import Final

import msgspec

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.core.protocol.route import Route
from d8mesh.doors.query import seconds
from d8mesh.doors.waiting import Doorbell, Places, require_broker
from d8mesh.edge.logs import event
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import CONTENT_TYPE, LINK_HEADER, PATH
from d8mesh.errors import ProtocolError
from d8mesh.http.answers import Refusal, Response
from d8mesh.http.routes import MAX_BODY_BYTES, Door, HttpRoute, Request
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.aio.watcher import Watcher, watcher_on

#: The longest a poll may stay open with nothing to say.
MAX_TUNNEL_POLL_S: Final = 20.0
#: Links at the same time: machines behind a closed port. Each has a connection of its own.
MAX_LINKS: Final = 200
#: A link that nobody asked for this long is closed; its peer opens another.
IDLE_S: Final = 60.0
#: Bytes kept for a peer that does not fetch them; then its connection is not read from.
MAX_LINK_HELD_BYTES: Final = 64 * 1024 * 1024
#: Bytes of frames in one answer, if the first is not larger.
MAX_ANSWER_BYTES: Final = 40 * 1024 * 1024
#: Frames in one request, and taken from one connection in one go.
MAX_FRAMES: Final = 10_000
FRAMES_PER_TURN: Final = 64
#: How often idle links are looked for.
IDLE_LOOK_S: Final = 5.0
#: How soon what a connection did not take is tried again.
UNSENT_S: Final = 0.005
_LINK_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

_decoder: Final = msgspec.msgpack.Decoder(list[bytes])
_log: Final = logging.getLogger("d8mesh.exchange")


class Exchange:
    """Carries frames between requests and the broker; made in a running loop, and used there."""

    def __init__(self, endpoint: str, keys: KeyPair) -> None:
        self._loop = asyncio.get_running_loop()
        self._watcher, self._context = watcher_on(self._loop), SharedContext()
        self._route = Route.given(endpoint)
        self._connector = Connector(shared=self._context, keys=keys)
        self._links: dict[str, Link] = {}
        self._look = self._loop.call_later(IDLE_LOOK_S, self._close_idle)

    async def exchange(self, request: Request) -> Response:
        """Answer a request: take its frames and, if it may wait, bring those for its link.

        A request without ``wait`` brings none back: answers to two requests of a link may
        overtake each other, and the order of frames must not depend on that. Who leaves
        meanwhile has taken none: they stay for the next request.
        """
        wait_s = seconds(request.args, "wait", default=0.0, most=MAX_TUNNEL_POLL_S, is_cut=True)
        link_id = request.fields.get(LINK_HEADER.lower(), "")
        if not _LINK_ID.fullmatch(link_id):
            raise Refusal("http.bad_request", f"{LINK_HEADER}: expected 32 hex digits")
        link = self._link(link_id)
        link.put(request.value)
        found = await link.fetch(wait_s) if "wait" in request.args else []
        return Response(msgspec.msgpack.encode(found), content_type=CONTENT_TYPE)

    async def close(self) -> None:
        """Close all links."""
        self._look.cancel()
        for link in self._links.values():
            link.close()
        self._watcher.close()
        await self._loop.run_in_executor(None, self._context.term)  # it sends what is left

    def _link(self, link_id: str) -> Link:
        link = self._links.get(link_id)
        if link is None:
            if len(self._links) >= MAX_LINKS:
                raise Refusal(
                    "access.flood",
                    f"{MAX_LINKS} links are open: let the broker's port through the firewall",
                )
            socket = self._connector.dealer(self._route)
            link = self._links[link_id] = Link(socket, self._loop, self._watcher)
            event(_log, logging.INFO, "exchange.link", links=len(self._links))
        link.used_at = self._loop.time()
        return link

    def _close_idle(self) -> None:
        self._look = self._loop.call_later(IDLE_LOOK_S, self._close_idle)
        until = self._loop.time() - IDLE_S
        for link_id in [link_id for link_id, link in self._links.items() if link.used_at < until]:
            self._links.pop(link_id).close()


class Link:
    """One peer's link: its connection to the broker, and what waits on both sides."""

    def __init__(
        self, socket: DealerLink, loop: asyncio.AbstractEventLoop, watcher: Watcher
    ) -> None:
        self._socket, self._loop, self._watcher = socket, loop, watcher
        self._descriptor, _ = socket.descriptors
        watcher.add(self._descriptor, self.carry)
        self.used_at = loop.time()
        self.polls = 0
        self._outgoing: deque[bytes] = deque()
        self._incoming: deque[bytes] = deque()
        self._held_bytes = 0
        self._next_carry: asyncio.Handle | None = None
        self._bell = Doorbell(loop)

    def put(self, frames: list[bytes]) -> None:
        """Have these sent, unless too many wait already."""
        if frames and len(self._outgoing) >= MAX_FRAMES:
            raise Refusal("access.flood", "the broker takes no more frames for now")
        self._outgoing.extend(frames)
        self.carry()

    async def fetch(self, wait_s: float) -> list[bytes]:
        """Return what has come in, in order, up to MAX_ANSWER_BYTES; if need be, wait for it.

        Who waits ends the wait of an older poll, which gets nothing: its asker went on to ask
        anew, and its connection may lead nowhere.
        """
        if wait_s:
            self.polls += 1
            self._bell.ring()
        poll = self.polls
        if wait_s and not self._incoming:
            await self._bell.is_rung(wait_s)
        self.used_at = self._loop.time()
        found, size = list[bytes](), 0
        while self._incoming and self.polls == poll:
            size += len(self._incoming[0])
            if found and size > MAX_ANSWER_BYTES:
                break
            found.append(self._incoming.popleft())
            self._held_bytes -= len(found[-1])
        if found:
            self.carry()
        return found

    def carry(self) -> None:
        """Send what waits, receive what has come; come back if that is not all."""
        if self._next_carry is not None:
            self._next_carry.cancel()
            self._next_carry = None
        socket = self._socket
        while self._outgoing and socket.send(self._outgoing[0]):
            self._outgoing.popleft()
        if self._held_bytes <= MAX_LINK_HELD_BYTES and (
            received := socket.receive(FRAMES_PER_TURN)
        ):
            self._incoming.extend(received)
            self._held_bytes += sum(map(len, received))
            self._bell.ring()
        if self._held_bytes <= MAX_LINK_HELD_BYTES and socket.has_input:
            self._next_carry = self._loop.call_soon(self.carry)
        elif self._outgoing:
            self._next_carry = self._loop.call_later(UNSENT_S, self.carry)

    def close(self) -> None:
        """Close the connection; who waits is answered."""
        if self._next_carry is not None:
            self._next_carry.cancel()
        self._watcher.remove(self._descriptor)
        self._bell.ring()
        self._socket.close()


def tunnel_door(exchange: Exchange, mesh: AsyncNode, waits: Places) -> Door:
    """Return the door of the frames; `mesh` knows whether the broker is there."""
    route = HttpRoute(
        PATH,
        exchange.exchange,
        frames_of,
        method="POST",
        takes=CONTENT_TYPE,
        max_body_bytes=MAX_BODY_BYTES,
        ends_with_caller=True,
    )
    return Door(routes=(route,), before=lambda _: require_broker(mesh, waits))


def frames_of(body: bytes) -> list[bytes]:
    """Return the frames of a body, if they are neither too many nor too large."""
    if not body:
        return []
    try:
        frames = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the body is no array of frames: {error}") from error
    if len(frames) > MAX_FRAMES or any(len(frame) > MAX_FRAME_BYTES for frame in frames):
        raise ProtocolError(
            f"expected at most {MAX_FRAMES} frames of at most {MAX_FRAME_BYTES} bytes each"
        )
    return frames
