"""A session over HTTP: the frames of ZeroMQ through ``POST /api/mesh/exchange``.

For machines that can reach the REST port only. One thread sends what there is, another
keeps a long poll open, so that sending never waits for the poll. The body of a request and
of an answer is a msgpack array of frames; ``X-D8-Link`` names the link, made up here.

Source: ``docs/PROTOCOL.md``, section Exchange
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import threading
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec

CONTENT_TYPE: Final = "application/x-d8-frames"
LINK_HEADER: Final = "X-D8-Link"
PATH: Final = "/api/mesh/exchange"
#: How long the other side may hold a poll open with nothing to say.
POLL_S: Final = 20
#: Frames waiting to be sent; more are refused, as a full ZeroMQ queue would.
MAX_WAITING: Final = 1000
#: Bytes of frames put into one request.
MAX_BODY_BYTES: Final = 40 * 1024 * 1024
#: The pause after a failed request.
PAUSE_S: Final = 0.5
_TIME_LIMIT_S: Final = POLL_S + 10

_decoder: Final = msgspec.msgpack.Decoder(list[bytes])


class ExchangeLink:
    """One link to one broker through its REST shim; the same calls as a `DealerLink`.

    Args:
        url: ``http://HOST:PORT`` of the orchestrator.
        wake: called, from a thread of this link, when something has come in.
    """

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self._parts = urlsplit(url)
        self._wake = wake
        self._id = secrets.token_hex(16)
        self._received: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()
        self._has_work = threading.Condition()
        self._stop = threading.Event()
        self._connections: list[http.client.HTTPConnection] = []
        for target in (self._send_all, self._poll_all):
            threading.Thread(target=target, name="exchange", daemon=True).start()

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False if too much waits already."""
        if len(self._waiting) >= MAX_WAITING:
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
        return received

    def close(self) -> None:
        """Send what waits, for a short time, and stop."""
        with self._has_work:
            self._stop.set()
            self._has_work.notify_all()

    # ------------------------------------------------------------------- the threads

    def _send_all(self) -> None:
        connection = self._connect()
        while True:
            with self._has_work:
                while not self._waiting and not self._stop.is_set():
                    self._has_work.wait()
                frames = self._take()
            if frames and not self._post(connection, frames, wait_s=0):
                self._put_back(frames)
                if self._stop.wait(PAUSE_S):
                    break
            if self._stop.is_set() and not self._waiting:
                break
        connection.close()

    def _poll_all(self) -> None:
        connection = self._connect()
        while not self._stop.is_set():
            if not self._post(connection, [], wait_s=POLL_S):
                self._stop.wait(PAUSE_S)
        connection.close()

    def _take(self) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        while self._waiting and (not frames or size + len(self._waiting[0]) <= MAX_BODY_BYTES):
            frames.append(self._waiting.popleft())
            size += len(frames[-1])
        return frames

    def _put_back(self, frames: list[bytes]) -> None:
        self._waiting.extendleft(reversed(frames))

    def _connect(self) -> http.client.HTTPConnection:
        parts = self._parts
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname or "", parts.port, timeout=_TIME_LIMIT_S)

    def _post(
        self, connection: http.client.HTTPConnection, frames: list[bytes], *, wait_s: int
    ) -> bool:
        """Exchange frames once; False if that failed and can be tried again."""
        headers = {"Content-Type": CONTENT_TYPE, LINK_HEADER: self._id}
        try:
            body = msgspec.msgpack.encode(frames)
            connection.request("POST", f"{PATH}?wait={wait_s}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            received = _decoder.decode(content) if answer.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            with contextlib.suppress(OSError):
                connection.close()  # the next request dials again
            return False
        if received is None:
            return False
        if received:
            self._received.extend(received)
            self._wake()
        return True
