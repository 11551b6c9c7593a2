"""A server on a real socket with a small ASGI application, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from d8mesh.edge.network import bind
from d8mesh.http.answers import Refusal, Response, problem
from d8mesh.http.asgi import AsgiSend, Receive, Scope
from d8mesh.http.guard import Rejections
from d8mesh.http.server import Server, ServerThread
from d8mesh.http.tls import TlsFiles, server_context

PATIENCE_S = 20.0
LARGE_BYTES = 150_000


class Noted(Rejections):
    """Rejections as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, str]] = []

    def add(self, code: str, peer: str, why: str, **more: Any) -> None:
        self.noted.append((code, peer))


class Served:
    """/wait waits until its caller leaves, /write never ends, /body tells what came, and so on."""

    def __init__(self, admits: bool = True, tls: TlsFiles | None = None) -> None:
        self.tls = tls
        self.refused = Noted()
        self.is_gone = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.server = Server(
            self.application,
            [bind("127.0.0.1", 0)],
            lambda peer: admits,
            self.refused,
            self.told_of,
            None if tls is None else server_context(tls),
        )
        #: path and Origin of what was refused
        self.places: list[tuple[str, str | None]] = []
        self.thread = ServerThread(self.server)
        (self.port,) = self.thread.ports
        self.thread.start()

    def told_of(self, path: str, origin: str | None, refusal: Refusal) -> Response:
        self.places.append((path, origin))
        return problem(refusal)

    async def application(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        headers = [(b"Content-Type", b"application/json")]
        path = scope["path"]
        if path == "/raise":
            raise ValueError("as it was asked to")
        if path in ("/write", "/begun", "/ended"):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if path == "/ended":
                await send({"type": "http.response.body", "body": await _body(receive)})
                return
            await (self._write(send) if path == "/write" else _body(receive))
            raise ValueError("as it was asked to")
        if path == "/none":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        body = await self._answer(scope, receive)
        if path == "/split":
            headers.append((b"X", b"a\r\nb: c"))
        if path != "/parts":
            headers.append((b"Content-Length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _write(self, send: AsgiSend) -> None:
        part = {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
        try:
            while True:
                await send(part)
                await asyncio.sleep(0)
        finally:
            self.is_gone.set()

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        path = scope["path"]
        if path in ("/wait", "/keep", "/late"):
            self.waiting.release()
        if path == "/wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.is_gone.set()
        if path == "/keep":
            scope["d8.runs_on"] = True
            while (await receive())["type"] != "http.disconnect":
                pass
            self.is_gone.set()
        if path == "/late":
            await asyncio.sleep(PATIENCE_S)
        if path == "/soon":
            await asyncio.sleep(0.5)
        if path == "/large":
            return b"x" * LARGE_BYTES
        if path == "/body":
            return await _body(receive)
        if path == "/scope":
            told = {name: scope[name] for name in ("method", "path", "http_version")}
            return json.dumps(told | {"query": scope["query_string"].decode()}).encode()
        return b"{}"

    def connect(self) -> socket.socket:
        return self.secured(self.connect_plainly())

    def connect_plainly(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def secured(self, connection: socket.socket) -> socket.socket:
        """Return what speaks TLS over it, if that is what is served."""
        if self.tls is None:
            return connection
        context = ssl.create_default_context(cafile=str(self.tls.certificate))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context.wrap_socket(connection, server_hostname="127.0.0.1")

    def say(self, *parts: bytes) -> bytes:
        """Send raw bytes; return all that comes until the connection is closed."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for part in parts:
                    connection.sendall(part)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        return answer

    def told(self, *parts: bytes) -> tuple[int, Any]:
        """Send raw bytes; return the status and the JSON body of the only answer."""
        head, _, body = self.say(*parts).partition(b"\r\n\r\n")
        assert b"application/json" in head
        return int(head.split()[1]), json.loads(body)


@contextlib.contextmanager
def served(*, admits: bool = True, tls: TlsFiles | None = None) -> Iterator[Served]:
    found = Served(admits, tls)
    try:
        yield found
    finally:
        found.thread.close(PATIENCE_S)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


async def _body(receive: Receive) -> bytes:
    parts, has_more = [], True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message["body"])
        has_more = message["more_body"]
    return b"".join(parts)
