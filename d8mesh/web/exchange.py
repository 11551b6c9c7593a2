"""The other side of `edge.exchange`: carries frames between HTTP and the broker.

Each remote link gets a DEALER of its own, so that to the broker it is a peer like any
other; frames pass undecoded. All DEALERs live on one thread. A link that nobody asks for
is closed: whoever comes back gets a new one, and the session says HELLO again.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from d8mesh.core.messages import MAX_FRAME_BYTES
from d8mesh.edge.sockets import DealerLink, Loop, SharedContext, Waker
from d8mesh.errors import BrokerUnavailableError, InvalidTaskError, QueueFullError

#: Links at once: machines behind a closed port; each holds one request with its poll.
MAX_LINKS: Final = 128
#: The longest a poll may be held open with nothing to say.
MAX_WAIT_S: Final = 30.0
#: A link that was not asked for this long is closed: its polls come every 20 s at most.
IDLE_S: Final = 45.0
#: Frames of one request, and waiting for the broker or the remote side of one link.
MAX_FRAMES: Final = 1000
#: Bytes waiting for one remote side; more stay with ZeroMQ, and then with the broker.
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
#: Frames taken from one link before the others have their turn.
_FRAMES_PER_TURN: Final = 64
#: How often idle links are looked for, and whether a client that waits has left.
_LOOK_S: Final = 1.0
_LINK_ID: Final = re.compile(r"[0-9a-f]{32}")

_decoder: Final = msgspec.msgpack.Decoder(list[bytes])
_encoder: Final = msgspec.msgpack.Encoder()
Gone: TypeAlias = Callable[[], bool]


class _Remote:
    """One remote link: what waits in each direction."""

    def __init__(self, dealer: DealerLink) -> None:
        self.dealer = dealer
        self.to_broker: deque[bytes] = deque()
        self.to_remote: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.is_paused = False
        self.asked = time.monotonic()
        #: number of the newest poll: an older one ends when it is overtaken
        self.newest_poll = 0


class Relay:
    """Carries frames of many remote links to one broker and back.

    Args:
        endpoint: ``tcp://HOST:PORT`` of the broker.

    Thread: `exchange`, `open_links` and `close` from any.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._remotes: dict[str, _Remote] = {}
        self._news = threading.Condition()
        self._opened: deque[str] = deque()
        self._waker = Waker()
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    @property
    def open_links(self) -> int:
        """How many links there are."""
        return len(self._remotes)

    def exchange(self, link_id: str, frames: list[bytes], wait_s: float, is_gone: Gone) -> bytes:
        """Pass `frames` on, and return what has come for this link, as a body.

        Args:
            link_id: 32 hexadecimal digits that the remote side made up.
            frames: as `frames_of` returns them.
            wait_s: how long to wait for something to come, in seconds.
            is_gone: whether the remote side has left.

        Raises:
            InvalidTaskError: `link_id` is not of that form.
            BrokerUnavailableError: there are too many links.
            QueueFullError: too much waits for the broker; nothing was taken.
        """
        if not _LINK_ID.fullmatch(link_id):
            raise InvalidTaskError("X-D8-Link: expected 32 hexadecimal digits")
        with self._news:
            remote = self._remote(link_id)
            if len(remote.to_broker) + len(frames) > MAX_FRAMES:
                raise QueueFullError(f"more than {MAX_FRAMES} frames wait for the broker")
            remote.to_broker.extend(frames)
            remote.asked = time.monotonic()
            if frames:
                self._waker.wake()
            if wait_s > 0:
                self._wait(remote, min(wait_s, MAX_WAIT_S), is_gone)
                if is_gone():
                    return _encoder.encode([])  # what waits is for its next request
            return _encoder.encode(self._take(remote))

    def close(self) -> None:
        """Close all links."""
        with self._news:
            self._is_closing = True
            self._news.notify_all()
        self._waker.wake()
        self._thread.join(timeout=2.0)

    # --------------------------------------------------------- under the lock, by askers

    def _remote(self, link_id: str) -> _Remote:
        """Return the link, waiting for the thread to make it if it is new."""
        if link_id not in self._remotes:
            if len(self._remotes) + len(self._opened) >= MAX_LINKS:
                raise BrokerUnavailableError(
                    f"{MAX_LINKS} machines come by this way already: open the broker's port"
                )
            if link_id not in self._opened:
                self._opened.append(link_id)
                self._waker.wake()
            self._news.wait_for(lambda: link_id in self._remotes or self._is_closing, _LOOK_S)
        found = self._remotes.get(link_id)
        if found is None:
            raise BrokerUnavailableError
        return found

    def _wait(self, remote: _Remote, wait_s: float, is_gone: Gone) -> None:
        remote.newest_poll += 1
        number = remote.newest_poll
        self._news.notify_all()  # an older poll of this link
        until = time.monotonic() + wait_s
        while not remote.to_remote and remote.newest_poll == number and not self._is_closing:
            left_s = until - time.monotonic()
            if left_s <= 0 or is_gone():
                return
            self._news.wait(min(left_s, _LOOK_S))

    def _take(self, remote: _Remote) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        while remote.to_remote and (
            not frames or size + len(remote.to_remote[0]) <= MAX_FRAME_BYTES
        ):
            frames.append(remote.to_remote.popleft())
            size += len(frames[-1])
        remote.waiting_bytes -= size
        if remote.is_paused:
            self._waker.wake()
        return frames

    # ------------------------------------------------------------------- the one thread

    def _serve(self) -> None:
        shared, loop = SharedContext(), Loop(self._waker)
        next_look = 0.0
        while not self._is_closing:
            loop.wait(_LOOK_S)
            with self._news:
                self._open(shared, loop)
                is_news = False
                for remote in self._remotes.values():
                    is_news |= self._carry(remote, loop)
                if is_news:
                    self._news.notify_all()
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + _LOOK_S
                    self._sweep(loop, now)
        with self._news:
            for remote in self._remotes.values():
                loop.remove(remote.dealer)
                remote.dealer.close()
            self._remotes.clear()
        shared.close()
        self._waker.close()

    def _open(self, shared: SharedContext, loop: Loop) -> None:
        while self._opened:
            dealer = DealerLink(self._endpoint, shared)
            loop.add(dealer)
            self._remotes[self._opened.popleft()] = _Remote(dealer)
            self._news.notify_all()

    @staticmethod
    def _carry(remote: _Remote, loop: Loop) -> bool:
        """Move what can be moved; return whether something has come for the remote side."""
        while remote.to_broker and remote.dealer.send(remote.to_broker[0]):
            remote.to_broker.popleft()
        is_full = remote.waiting_bytes >= MAX_WAITING_BYTES or len(remote.to_remote) >= MAX_FRAMES
        if is_full != remote.is_paused:
            remote.is_paused = is_full
            loop.remove(remote.dealer) if is_full else loop.add(remote.dealer)
        if is_full:
            return False
        received = remote.dealer.receive(_FRAMES_PER_TURN)
        remote.to_remote.extend(received)
        remote.waiting_bytes += sum(map(len, received))
        return bool(received)

    def _sweep(self, loop: Loop, now: float) -> None:
        idle = [key for key, remote in self._remotes.items() if now - remote.asked > IDLE_S]
        for link_id in idle:
            remote = self._remotes.pop(link_id)
            loop.remove(remote.dealer)
            remote.dealer.close()


def frames_of(body: bytes) -> list[bytes]:
    """Return the frames of a request's body; an empty body has none.

    Raises:
        InvalidTaskError: it is no msgpack array of binaries, or one of too many or too large.
    """
    try:
        frames = _decoder.decode(body) if body else []
    except msgspec.DecodeError as error:
        raise InvalidTaskError(f"the body is no msgpack array of binaries: {error}") from error
    if len(frames) > MAX_FRAMES or any(len(frame) > MAX_FRAME_BYTES for frame in frames):
        raise InvalidTaskError(
            f"the body has {len(frames)} frames: at most {MAX_FRAMES}, of {MAX_FRAME_BYTES} bytes"
        )
    return frames
