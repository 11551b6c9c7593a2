"""HTTP as bytes: what no library would send."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any, Final

#: How long an answer may take on a loaded, slow machine.
ANSWER_S: Final = 60.0


@dataclass(frozen=True)
class Told:
    """What came back: the first answer of a connection that has ended."""

    status: int
    head: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def field(self, name: str) -> str | None:
        """Return the header of this name."""
        for line in self.head.split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None


class RawHttp:
    """Sends bytes as they are to one port of this machine."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.address = (host, port)

    def connect(self) -> socket.socket:
        """Return a connection."""
        return socket.create_connection(self.address, timeout=ANSWER_S)

    def say(self, *parts: bytes) -> Told:
        """Send these on a connection of their own; return the first answer of it."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for part in parts:
                    connection.sendall(part)
            return answer_of(connection)

    def ask(
        self, method: str, path: str, body: bytes = b"", *lines: str, host: str | None = "localhost"
    ) -> Told:
        """Send a request with a body and more lines of its head."""
        sized = (f"Content-Length: {len(body)}",) if body else ()
        return self.say(head(method, path, *lines, *sized, host=host), body)

    def post(self, path: str, body: object, *lines: str) -> Told:
        """Send what is no bytes as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, content, "Content-Type: application/json", *lines)


def head(method: str, path: str, *lines: str, host: str | None = "localhost") -> bytes:
    """Return the head of a request, after which the connection closes."""
    named = [] if host is None else [f"Host: {host}"]
    told = [f"{method} {path} HTTP/1.1", *named, "Connection: close", *lines, "", ""]
    return "\r\n".join(told).encode("latin-1")


def answer_of(connection: socket.socket) -> Told:
    """Read until the other side closes; return its (first) answer, status 0 if there is none."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            answer += part
    begun, _, body = answer.partition(b"\r\n\r\n")
    words = begun.split()
    return Told(int(words[1]) if len(words) > 1 else 0, begun.decode("latin-1"), body)
