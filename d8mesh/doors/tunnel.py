"""``POST /api/mesh/exchange``: sessions of peers that can reach the REST port only.

The frames of a link go through a ZeroMQ connection of its own to the broker, which sees no
difference. One thread owns all these connections; requests put frames in and take frames out.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from werkzeug.wrappers import Request, Response

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.core.protocol.route import Route
from d8mesh.doors.rest.mesh import Places
from d8mesh.doors.rest.schemas import seconds
from d8mesh.doors.rest.workers import is_gone
from d8mesh.edge.logs import event
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import DealerLink, Loop, SharedContext, Waker
from d8mesh.errors import BrokerUnavailableError, ProtocolError
from d8mesh.http.answers import Refusal
from d8mesh.http.guard import body_of

CONTENT_TYPE: Final = "application/x-d8-frames"
LINK_HEADER: Final = "X-D8-Link"
#: The longest a poll may stay open with nothing to say.
MAX_WAIT_S: Final = 20.0
#: Links at the same time: machines behind a closed port.
MAX_LINKS: Final = 200
#: A link that nobody asked for this long is closed; its peer opens another.
IDLE_S: Final = 60.0
#: Bytes kept for a peer that does not fetch them; then its connection is not read from.
MAX_HELD_BYTES: Final = 64 * 1024 * 1024
#: Bytes of frames in one answer, if the first is not larger.
MAX_ANSWER_BYTES: Final = 40 * 1024 * 1024
#: Frames in one request, and taken from one connection in one go.
MAX_FRAMES: Final = 10_000
FRAMES_PER_TURN: Final = 64
_LOOK_S: Final = 5.0
#: How often a waiting request looks whether its asker is still there.
_GONE_S: Final = 2.0
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

_decoder: Final = msgspec.msgpack.Decoder(list[bytes])
_log: Final = logging.getLogger("d8mesh.exchange")


class Exchange:
    """Carries frames between requests and the broker.

    Args:
        endpoint: ``tcp://HOST:PORT`` of the broker.
        waits: the places of waiting requests.

    Thread: `exchange` and `close` may be called from any.
    """

    def __init__(self, endpoint: str, waits: Places) -> None:
        self._route = Route(endpoint)
        self._waits = waits
        self._links: dict[str, _Link] = {}
        self._lock = threading.Lock()
        self._waker = Waker()
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="exchange", daemon=True)
        self._thread.start()

    def exchange(self, request: Request) -> Response:
        """Answer a request: take its frames and, if it may wait, bring those for its link.

        A request without ``wait`` brings none back: answers to two requests of a link may
        overtake each other, and the order of frames must not depend on that.

        Raises:
            Refusal: the header or the body is not as described, or there are too many links.
            InvalidTaskError: `wait` is no duration.
        """
        wait_s = seconds(request.args, "wait", default=0.0, most=MAX_WAIT_S, is_cut=True)
        link_id = request.headers.get(LINK_HEADER, "")
        if not _ID.fullmatch(link_id):
            raise Refusal("http.bad_request", f"{LINK_HEADER}: expected 32 hex digits")
        frames = _frames_of(body_of(request, CONTENT_TYPE))
        link = self._link(link_id)
        link.put(frames)
        if frames:
            self._waker.wake()
        found: list[bytes] = []
        if "wait" in request.args:
            poll = link.begin_poll() if wait_s else link.newest_poll
            if wait_s and not link.has_frames:
                with self._waits.one() as may_wait:
                    link.wait(poll, wait_s if may_wait else 0.0, lambda: is_gone(request))
            if not is_gone(request):  # else they stay for the next request
                found = link.take(poll)
        if link.is_paused:
            self._waker.wake()
        return Response(msgspec.msgpack.encode(found), content_type=CONTENT_TYPE)

    def close(self) -> None:
        """Close all links."""
        self._is_closing = True
        self._waker.wake()
        self._thread.join(timeout=2.0)

    def _link(self, link_id: str) -> _Link:
        with self._lock:
            link = self._links.get(link_id)
            if link is None or link.is_closed:
                if len(self._links) >= MAX_LINKS:
                    raise Refusal(
                        "access.flood",
                        f"{MAX_LINKS} links are open: let the broker's port through the firewall",
                    )
                link = self._links[link_id] = _Link()
                event(_log, logging.INFO, "exchange.link", links=len(self._links))
        link.last_used = time.monotonic()
        self._waker.wake()
        return link

    # ------------------------------------------------------------- the pumping thread

    def _serve(self) -> None:
        loop, shared = Loop(self._waker), SharedContext()
        connector = Connector(shared=shared)
        while not self._is_closing:
            loop.wait(_LOOK_S)
            with self._lock:
                links = list(self._links.items())
            now = time.monotonic()
            for link_id, link in links:
                if now - link.last_used > IDLE_S or not self._pump(link, loop, connector):
                    with self._lock:
                        self._links.pop(link_id, None)
                    link.disconnect(loop)
        for link in list(self._links.values()):
            link.disconnect(loop)
        shared.close()
        self._waker.close()

    def _pump(self, link: _Link, loop: Loop, connector: Connector) -> bool:
        """Carry what there is; False if the link cannot go on."""
        if link.socket is None:
            try:
                link.connect(connector.dealer(self._route), loop)
            except BrokerUnavailableError as error:
                event(_log, logging.WARNING, "exchange.unconnected", error=str(error))
                return False
        link.carry(loop)
        return True


class _Link:
    """One peer's link.

    Thread: `connect`, `carry` and `disconnect` are the pumping thread's, the rest is any's.
    """

    def __init__(self) -> None:
        self.socket: DealerLink | None = None
        self.is_closed = False
        self.is_paused = False
        self.last_used = time.monotonic()
        self._outgoing: deque[bytes] = deque()
        self._incoming: deque[bytes] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self.newest_poll = 0

    @property
    def has_frames(self) -> bool:
        """True if something waits to be fetched."""
        return bool(self._incoming)

    def put(self, frames: list[bytes]) -> None:
        """Have these sent.

        Raises:
            Refusal: too many wait already.
        """
        with self._changed:
            if frames and len(self._outgoing) >= MAX_FRAMES:
                raise Refusal("access.flood", "the broker takes no more frames for now")
            self._outgoing.extend(frames)

    def begin_poll(self) -> int:
        """Return the number of a new poll; it ends the wait of an older one."""
        with self._changed:
            self.newest_poll += 1
            self._changed.notify_all()
            return self.newest_poll

    def wait(self, poll: int, wait_s: float, is_gone: Callable[[], bool]) -> None:
        """Wait until there is something to fetch, or a newer poll."""
        until = time.monotonic() + wait_s
        with self._changed:
            while not self._incoming and not self.is_closed and self.newest_poll == poll:
                left_s = until - time.monotonic()
                if left_s <= 0 or is_gone():
                    break
                self._changed.wait(min(left_s, _GONE_S))
        self.last_used = time.monotonic()

    def take(self, poll: int) -> list[bytes]:
        """Return what has come in, in order, up to MAX_ANSWER_BYTES; to the newest poll only.

        The asker of an older one went on to ask anew: its connection may lead nowhere.
        """
        found: list[bytes] = []
        size = 0
        with self._changed:
            while self._incoming and self.newest_poll == poll:
                size += len(self._incoming[0])
                if found and size > MAX_ANSWER_BYTES:
                    break
                found.append(self._incoming.popleft())
                self._held_bytes -= len(found[-1])
        return found

    def connect(self, socket: DealerLink, loop: Loop) -> None:
        """Use this connection."""
        self.socket = socket
        loop.add(socket)

    def carry(self, loop: Loop) -> None:
        """Send what waits, receive what has come."""
        socket = self.socket
        assert socket is not None
        while self._outgoing and socket.send(self._outgoing[0]):
            self._outgoing.popleft()
        if self.is_paused and self._held_bytes < MAX_HELD_BYTES // 2:
            self.is_paused = False
            loop.add(socket)
        if self.is_paused:
            return
        received = socket.receive(FRAMES_PER_TURN)
        if received:
            with self._changed:
                self._incoming.extend(received)
                self._held_bytes += sum(map(len, received))
                self._changed.notify_all()
        if self._held_bytes > MAX_HELD_BYTES:
            self.is_paused = True
            loop.remove(socket)

    def disconnect(self, loop: Loop) -> None:
        """Close the connection; who waits is answered."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        socket, self.socket = self.socket, None
        if socket is not None:
            if not self.is_paused:
                loop.remove(socket)
            socket.close()


def _frames_of(body: bytes) -> list[bytes]:
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
