"""A session over HTTP: the frames of ZeroMQ through ``POST /api/mesh/exchange``.

For machines that can reach the REST port only. One thread sends what there is, another
keeps a long poll open, so that sending never waits for the poll. The body of a request and
of an answer is a msgpack array of frames; ``X-D8-Link`` names the link, made up here. Only
the poll brings frames, so they come in order. An answer that got lost is gone: after a
failed poll the session is told to say HELLO again, which repairs whatever was in it.

Source: ``docs/PROTOCOL.md``, section Exchange
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.messages import Rehello

CONTENT_TYPE: Final = "application/x-d8-frames"
LINK_HEADER: Final = "X-D8-Link"
PATH: Final = "/api/mesh/exchange"
#: How long the other side may hold a poll open with nothing to say.
POLL_S: Final = 20
#: Frames waiting to be sent, or to be received; more are refused, or left where they are.
MAX_WAITING_FRAMES: Final = 1000
#: Bytes of frames put into one request: below the largest body that is taken there.
MAX_TUNNEL_BODY_BYTES: Final = 40 * 1024 * 1024
#: Largest answer that is read.
MAX_TUNNEL_ANSWER_BYTES: Final = 80 * 1024 * 1024
#: The pause after a failed request, and between looks whether frames have been taken.
PAUSE_S: Final = 0.5
TAKEN_LOOK_S: Final = 0.05
#: How long a connection and an answer may take, beside the poll's own time.
SLACK_S: Final = 10

_decoder: Final = msgspec.msgpack.Decoder(list[bytes])


class ExchangeLink:
    """One link to one broker through its REST port; the same calls as a `DealerLink`.

    Args:
        url: ``http://HOST:PORT`` of the orchestrator.
        wake: called, from a thread of this link, when something has come in.

    Thread: one thread calls these; `wake` is called by another.
    """

    #: as of a `DealerLink`: here each request has a connection of its own
    is_cut = is_renewed = False
    #: nobody has proven a key: what is behind the REST port has one, but it is not the far end
    server_key: bytes | None = None

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._id = secrets.token_hex(16)
        self._received: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()
        self._has_work = threading.Condition()
        self._stop = threading.Event()
        self._sender, self._poller = _Line(url, self._id), _Line(url, self._id)
        for target in (self._send_all, self._poll_all):
            threading.Thread(target=target, name="exchange", daemon=True).start()

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False if too much waits already."""
        if len(self._waiting) >= MAX_WAITING_FRAMES:
            return False
        with self._has_work:
            self._waiting.append(frame)
            self._has_work.notify()
        return True

    def receive(self, limit: int) -> list[bytes]:
        """Return what has come in, at most `limit` frames; never waits."""
        received: list[bytes] = []
        while self._received and len(received) < limit:
            received.append(self._received.popleft())
        if self._received:
            self._wake()  # nothing else would: no descriptor tells of these
        return received

    def close(self) -> None:
        """Stop; what waits is sent first, if one try does it."""
        with self._has_work:
            self._stop.set()
            self._has_work.notify_all()
        self._poller.cut()

    # ------------------------------------------------------------------- the threads

    def _send_all(self) -> None:
        while True:
            with self._has_work:
                while not self._waiting and not self._stop.is_set():
                    self._has_work.wait()
                frames = self._take()
            if frames and self._sender.exchange(frames, wait_s=None) is None:
                with self._has_work:
                    self._waiting.extendleft(reversed(frames))
                if self._stop.wait(PAUSE_S):
                    break
            if self._stop.is_set() and not self._waiting:
                break
        self._sender.close()

    def _poll_all(self) -> None:
        is_in_doubt = False
        while not self._stop.is_set():
            if len(self._received) >= MAX_WAITING_FRAMES:
                self._stop.wait(TAKEN_LOOK_S)
                continue
            # After a failure the first poll returns at once: the session shall not wait.
            received = self._poller.exchange([], wait_s=0 if is_in_doubt else POLL_S)
            if received is None:
                is_in_doubt = True
                self._stop.wait(PAUSE_S)
                continue
            if is_in_doubt:
                is_in_doubt = False
                received = [encode(Rehello("an answer over HTTP was lost")), *received]
            if received:
                self._received.extend(received)
                self._wake()
        self._poller.close()

    def _take(self) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        while self._waiting and (
            not frames or size + len(self._waiting[0]) <= MAX_TUNNEL_BODY_BYTES
        ):
            frames.append(self._waiting.popleft())
            size += len(frames[-1]) + 5  # its length is written before it
        return frames


class _Line:
    """One HTTP connection, made again when it is needed.

    Thread: one; only `cut` may be called by another.
    """

    def __init__(self, url: str, link_id: str) -> None:
        parts = urlsplit(url)
        is_safe = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=POLL_S + SLACK_S)
        self._headers = {"Content-Type": CONTENT_TYPE, LINK_HEADER: link_id}

    def exchange(self, frames: list[bytes], *, wait_s: int | None) -> list[bytes] | None:
        """Bring frames and fetch what `wait_s` asks for.

        Returns:
            What came; nothing for frames that are refused as they are, which no further
            try would change; None if it failed and can be tried again.
        """
        connection = self._connection
        target = PATH if wait_s is None else f"{PATH}?wait={wait_s}"
        try:
            connection.request("POST", target, msgspec.msgpack.encode(frames), self._headers)
            answer = connection.getresponse()
            content = answer.read(MAX_TUNNEL_ANSWER_BYTES + 1)
            if answer.status in _REFUSALS and frames:
                return []
            if answer.status == http.HTTPStatus.OK and len(content) <= MAX_TUNNEL_ANSWER_BYTES:
                return _decoder.decode(content)
        except (OSError, http.client.HTTPException, msgspec.DecodeError, ValueError):
            pass
        self.close()  # the next request connects again
        return None

    def cut(self) -> None:
        """End a request that is waiting."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go."""
        with contextlib.suppress(OSError):
            self._connection.close()


#: Answers that the same frames would get again.
_REFUSALS: Final = frozenset({400, 413, 415})
