"""Peers that mean no good, as one process: they dribble, or send questions and never read.

Runs as ``python -m bench.abusers JOB`` (a JSON object), says ``up`` when all are at work, and ends
when its standard input does. Whoever is cut off comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final
from urllib.parse import urlsplit

import zmq

from bench.raw_loop import HOME, python
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import encode
from d8mesh.errors import D8Error

#: Between two bytes of who dribbles, and between two tries of who was cut off.
DRIBBLE_S: Final = 0.5
#: Questions that one peer asks before it stands there: each is answered at length.
QUESTIONS: Final = 64
#: Who never reads takes a connection anew after this, if it still has it.
AGAIN_S: Final = 20.0
END_S: Final = 30.0
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
_HEAD: Final = b"GET /api/tasks HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 5000
_PAGE: Final = b"GET /api/tasks?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AbuseJob:
    """Who is sent where.

    Args:
        url: of the REST port.
        endpoint: of the broker's port, ZeroMQ's.
        server_key: of the orchestrator, in hex.
        dribbling: connections that send a byte now and then, one half each at either port.
        deaf: peers that never read, one half each.
        nice: how much lower their priority is: they stand for other machines.
    """

    url: str
    endpoint: str
    server_key: str
    mesh: str
    dribbling: int
    deaf: int
    nice: int = 10


@contextlib.contextmanager
def abusers_beside(job: AbuseJob) -> Iterator[None]:
    """Keep them at work for as long as the context lasts.

    Raises:
        D8Error: they ended early.
    """
    process = subprocess.Popen(
        python("bench.abusers", json.dumps(asdict(job))),
        cwd=HOME,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        if process.poll() is not None:
            raise D8Error("the abusers ended too early")
        process.communicate(timeout=END_S)
    finally:
        process.kill()
        process.communicate()


@dataclass(slots=True, eq=False)
class _Dribbler:
    """Says the beginning of something, a byte at a time."""

    address: tuple[str, int]
    said: bytes
    at: int = 0
    connection: socket.socket | None = None

    def go_on(self) -> None:
        if self.connection is None:
            with contextlib.suppress(OSError):
                self.connection, self.at = socket.create_connection(self.address, 5.0), 0
                self.connection.setblocking(False)
            return
        try:
            self.connection.send(self.said[self.at : self.at + 1])
            self.at = (self.at + 1) % len(self.said)
            with contextlib.suppress(BlockingIOError):
                while data := self.connection.recv(4096):
                    del data
                raise ConnectionError
        except OSError:
            self.connection.close()
            self.connection = None


@dataclass(slots=True, eq=False)
class _DeafCaller:
    """Asks the REST for much, and reads nothing of it."""

    address: tuple[str, int]
    connection: socket.socket | None = None
    since: float = 0.0

    def go_on(self) -> None:
        if self.connection is not None and time.monotonic() - self.since > AGAIN_S:
            self.connection.close()
            self.connection = None
        if self.connection is None:
            self.since = time.monotonic()
            with contextlib.suppress(OSError):
                self.connection = socket.socket()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                self.connection.settimeout(5.0)
                self.connection.connect(self.address)
                self.connection.setblocking(False)
                self.connection.send(_PAGE * QUESTIONS)


@dataclass(slots=True, eq=False)
class _DeafClient:
    """Asks the broker for much, and reads nothing of it."""

    job: AbuseJob
    context: zmq.Context[zmq.Socket[bytes]]
    handle: zmq.Socket[bytes] | None = None
    since: float = field(default_factory=lambda: -AGAIN_S)

    def go_on(self) -> None:
        if time.monotonic() - self.since < AGAIN_S:
            return
        if self.handle is not None:
            self.handle.close(0)
        self.since = time.monotonic()
        self.handle = dealer = self.context.socket(zmq.DEALER)
        dealer.linger, dealer.rcvhwm, dealer.rcvbuf = 0, 1, 4096
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = bytes.fromhex(self.job.server_key)
        dealer.connect(self.job.endpoint)
        dealer.send(encode(m.ClientHello(1, self.job.mesh, secrets.token_hex(8), "deaf")))
        for number in range(QUESTIONS):
            dealer.send(encode(m.Query(number, "tasks", {"limit": 1000})))


def main(arguments: list[str]) -> int:
    """Be all of them."""
    job = AbuseJob(**json.loads(arguments[0]))
    if hasattr(os, "nice"):
        os.nice(job.nice)
    rest, broker = urlsplit(job.url), urlsplit(job.endpoint)
    http, zmtp = (rest.hostname or "", rest.port or 0), (broker.hostname or "", broker.port or 0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    crowd: list[_Dribbler | _DeafCaller | _DeafClient] = []
    for number in range(job.dribbling):
        crowd.append(_Dribbler(http, _HEAD) if number % 2 else _Dribbler(zmtp, _GREETING))
    for number in range(job.deaf):
        crowd.append(_DeafCaller(http) if number % 2 else _DeafClient(job, context))
    is_over = threading.Event()
    threading.Thread(target=_await_end, args=(is_over,), daemon=True).start()
    is_up = False
    while not is_over.is_set():
        for each in crowd:
            each.go_on()
        if not is_up:
            print("up", flush=True)
            is_up = True
        is_over.wait(DRIBBLE_S)
    context.destroy(0)
    return 0


def _await_end(is_over: threading.Event) -> None:
    sys.stdin.read()
    is_over.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
