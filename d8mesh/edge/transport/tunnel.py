"""A connection to the broker through the REST port: its bytes, over ``POST /api/mesh/exchange``.

For machines that can reach the REST port only. A link connects to a port of its own on this
machine; what it says there is carried to the broker, and back. Keys and proofs are between the
link and the broker: whoever stands between can only break the connection.

Both directions count their bytes, so a request or an answer that got lost, came late or came
twice changes nothing: it is asked again, and what was taken already is passed over. Where the
other side does not know the link any more the connection ends, and the link makes another.

Source: ``docs/PROTOCOL.md``, section Exchange
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import msgspec

from d8mesh.core.protocol.membership import link_pass
from d8mesh.edge.transport.http_answer import HttpAnswer
from d8mesh.edge.transport.web_client import WebAccess, asked_host, connect_to

BYTES_TYPE: Final = "application/octet-stream"
LINK_HEADER: Final = "X-D8-Link"
#: Where the bytes of a request stand in all that the link has sent; its last bytes.
AT_HEADER: Final = "X-D8-At"
END_HEADER: Final = "X-D8-End"
#: From where on bytes of the broker are wanted; all before it have arrived. How long to wait.
FROM_HEADER: Final = "X-D8-From"
WAIT_HEADER: Final = "X-D8-Wait"
EXCHANGE_PATH: Final = "/api/mesh/exchange"
#: How long the other side may hold a poll open with nothing to say.
TUNNEL_POLL_S: Final = 20
#: Bytes of one request and of one answer: more would be memory of the other side, not speed.
MAX_TUNNEL_BYTES: Final = 256 * 1024
#: How long a connection, and an answer beside the poll's own time, may take.
TUNNEL_ANSWER_S: Final = 10.0
#: The pause after a failed request; after so long without a good one the connection is given up.
TUNNEL_PAUSE_S: Final = 0.5
GIVE_UP_S: Final = 10.0
#: Pauses before the next connection where the one before never reached the broker, growing.
MAX_TUNNEL_PAUSE_S: Final = 5.0
#: How long closing waits for the last bytes to be taken.
LAST_BYTES_S: Final = 0.3
#: Answers that do not mean that the link is unknown there, or refused.
_PASSING: Final = frozenset({0, 408, 425, 429, 500, 502, 503, 504})
#: Stands for a status where a certificate is not good.
_UNTRUSTED: Final = -1
#: Of what an answer says to people.
MAX_SENTENCE_BYTES: Final = 500
_UNANSWERED: Final = (OSError, http.client.HTTPException, ValueError)


class Tunnel:
    """Leads from a port of this machine to the broker, one connection at a time.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT`` of the orchestrator.
        access: what is shown there, and what has to be shown to us.

    Thread: any; connections are carried by threads of its own.
    """

    def __init__(self, url: str, access: WebAccess) -> None:
        self._url, self._access = url, access
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: where a link is to connect to
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        #: why the last connection is not let through, in words; "": it is, or nothing answers
        self.trouble = ""
        self._closing = threading.Event()
        self._pipe: _Pipe | None = None
        self._thread = threading.Thread(target=self._serve, name="exchange", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, once the link has closed its connection; its last bytes are sent, in one try."""
        self._closing.set()
        pipe = self._pipe
        if pipe is not None:
            pipe.finish()
        with contextlib.suppress(OSError):  # ends a wait for a connection
            socket.create_connection(self._listener.getsockname(), timeout=LAST_BYTES_S).close()
        self._thread.join(LAST_BYTES_S)

    def _serve(self) -> None:
        pause_s = TUNNEL_PAUSE_S
        with self._listener:
            while True:
                try:
                    near, _ = self._listener.accept()
                except OSError:  # no descriptor is left
                    if self._closing.wait(TUNNEL_PAUSE_S):
                        return
                    continue
                with near:
                    if self._closing.is_set():
                        return
                    self._pipe = pipe = _Pipe(self._url, self._access, near, self._note)
                    if self._closing.is_set():
                        pipe.finish()
                    pipe.carry()
                pause_s = TUNNEL_PAUSE_S if pipe.is_open else min(MAX_TUNNEL_PAUSE_S, pause_s * 2)
                if not pipe.is_open:
                    self._closing.wait(pause_s)

    def _note(self, trouble: str) -> None:
        self.trouble = trouble


class _Pipe:
    """One connection of a link, carried under an id of its own.

    The thread that calls `carry` takes what the link says; another one keeps a poll open, so
    that sending never waits for it.

    Args:
        near: the link's side; it stays the caller's.
        note: takes in why the other side does not let this through, "" once it does.
    """

    def __init__(
        self, url: str, access: WebAccess, near: socket.socket, note: Callable[[str], None]
    ) -> None:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._near, self._note = near, note
        link_id = secrets.token_hex(16)
        self._sender, self._poller = (_Line(url, access, link_id) for _ in range(2))
        #: it is over; only its last bytes are waited for
        self._over, self._finishing = threading.Event(), threading.Event()
        #: whether the other side has ever taken something
        self.is_open = False

    def finish(self) -> None:
        """The link is about to close: nothing that comes for it matters. Thread: any."""
        self._finishing.set()
        self._poller.cut()

    def carry(self) -> None:
        """Carry bytes until one side has closed."""
        buffer = memoryview(bytearray(MAX_TUNNEL_BYTES))
        polling = threading.Thread(target=self._poll, name="exchange", daemon=True)
        at = 0
        with contextlib.suppress(*_UNANSWERED):
            while (count := self._near.recv_into(buffer)) and self._send(at, bytes(buffer[:count])):
                at += count
                if not self.is_open:
                    self.is_open = True
                    self._note("")
                    polling.start()
        if self.is_open and not self._over.is_set():
            with contextlib.suppress(*_UNANSWERED):
                self._sender.ask({AT_HEADER: at, END_HEADER: 1}, b"")
        self._end()
        self._sender.close()
        if self.is_open:
            self._poller.cut()
            polling.join(TUNNEL_ANSWER_S)

    def _send(self, at: int, body: bytes) -> bool:
        """Return whether the other side has taken these bytes."""
        until = time.monotonic() + GIVE_UP_S
        while not self._over.is_set():
            status, content = _tried(self._sender, {AT_HEADER: at}, body)
            if status == HTTPStatus.OK:
                return True
            is_late = time.monotonic() >= until or self._finishing.is_set()
            if status not in _PASSING:
                self._refused(status, content)
            if status not in _PASSING or is_late:
                return False
            self._over.wait(TUNNEL_PAUSE_S)
        return False

    def _poll(self) -> None:
        got, until = 0, time.monotonic() + GIVE_UP_S
        with contextlib.suppress(OSError):  # the link has closed
            while not self._over.is_set() and not self._finishing.is_set():
                wanted = {FROM_HEADER: got, WAIT_HEADER: TUNNEL_POLL_S}
                status, content = _tried(self._poller, wanted, b"")
                if status == HTTPStatus.OK:
                    self._near.sendall(content)
                    got += len(content)
                    until = time.monotonic() + GIVE_UP_S
                elif status in _PASSING and time.monotonic() < until:
                    self._over.wait(TUNNEL_PAUSE_S)
                else:
                    break
        self._poller.close()
        if not self._finishing.is_set():
            self._end()

    def _end(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)

    def _refused(self, status: int, content: bytes) -> None:
        """Note why the other side takes nothing; that it does not know the link is no reason."""
        if status != HTTPStatus.GONE:
            self._note(_sentence_in(status, content))


class _Line:
    """One HTTP connection, made again when it is needed.

    Thread: one; only `cut` may be called by another.
    """

    def __init__(self, url: str, access: WebAccess, link_id: str) -> None:
        self._url, self._trusted = url, access.trusted
        shown = access.token if access.secret is None else link_pass(access.secret, link_id)
        self._head = (
            f"POST {EXCHANGE_PATH} HTTP/1.1\r\nHost: {asked_host(url)}\r\n"
            f"Content-Type: {BYTES_TYPE}\r\n{LINK_HEADER}: {link_id}\r\n"
            + (f"Authorization: Bearer {shown}\r\n" if shown else "")
        ).encode("ascii")
        self._connection: socket.socket | None = None
        self._is_cut = False

    def ask(self, fields: dict[str, int], body: bytes) -> tuple[int, bytes]:
        """Send a request; return status and content of its answer.

        Raises:
            OSError, HTTPException: there is none; it can be asked again.
            ValueError: the answer is too large.
        """
        connection = self._connection or self._connected()
        is_kept = False
        try:
            connection.settimeout(TUNNEL_ANSWER_S + fields.get(WAIT_HEADER, 0))
            told = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
            rest = f"{told}Content-Length: {len(body)}\r\n\r\n".encode("ascii")
            connection.sendall(self._head + rest + body)
            answer = HttpAnswer(connection)
            content = answer.read(MAX_TUNNEL_BYTES + 1)
            if len(content) > MAX_TUNNEL_BYTES:
                raise ValueError(f"an answer of more than {MAX_TUNNEL_BYTES} bytes")
            is_kept = answer.may_be_followed and answer.is_spent()
            return answer.status, content
        finally:
            if not is_kept:
                self.close()

    def cut(self) -> None:
        """End a request that is waiting, and all that follow."""
        self._is_cut = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go; the next request makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> socket.socket:
        self._connection = connect_to(self._url, self._trusted, timeout_s=TUNNEL_ANSWER_S)
        if self._is_cut:
            raise ConnectionAbortedError
        return self._connection


def _tried(line: _Line, fields: dict[str, int], body: bytes) -> tuple[int, bytes]:
    """Ask; 0 is the status of no answer, and UNTRUSTED that of a certificate that is not good."""
    try:
        return line.ask(fields, body)
    except ssl.SSLCertVerificationError as error:
        return _UNTRUSTED, (error.strerror or str(error)).encode()
    except _UNANSWERED:
        return 0, b""


def _sentence_in(status: int, content: bytes) -> str:
    """Return what an answer that refuses us says to people."""
    text = content[:MAX_SENTENCE_BYTES].decode("utf-8", "replace")
    if status == _UNTRUSTED:
        return text
    try:
        told = msgspec.json.decode(content, type=_ToldRefusal)
    except (ValueError, RecursionError):
        return f"status {status}"
    return told.error[:MAX_SENTENCE_BYTES] or f"status {status}"


class _ToldRefusal(msgspec.Struct):
    """The body of an answer that refuses."""

    error: str = ""
