"""Peers that slow nobody but themselves: ``python -m tests.chaos.slow LOG BROKER_PORT MESH``.

Connections to the REST and the broker's port that say nothing, dribble, or ask and never read
the answer, and clients that submit and never read, all the time until the file ``LOG/stop``.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import msgspec
import zmq
from zmq.utils import z85

from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.messages import VERSIONS, ClientHello, Group, Submit
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.settings import proof_of

DIGITS = "0123456789abcdefghijklmnopqrstuv"
#: How many of each sort there are at once.
EACH = 3
#: A connection is given up and made anew after this long.
LIFE_S = 20.0
PAUSE_S = 0.5
#: Tasks per second of each client that never reads.
RATE = 4
_GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(47)


def main() -> None:
    """Be slow until told to stop."""
    folder, broker_port, mesh = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sorts: list[Callable[[Path, int], None]] = [silent, dribble_http, never_read, dribble_zmtp]
    stop = folder / "stop"

    def again(sort: Callable[[Path, int], None]) -> None:
        while not stop.exists():
            with contextlib.suppress(OSError):
                sort(folder, broker_port)
            time.sleep(PAUSE_S)

    for _ in range(EACH):
        for sort in sorts:
            threading.Thread(target=again, args=(sort,), daemon=True).start()
    submit_and_never_read(folder, broker_port, mesh)


def web_of(folder: Path) -> tuple[str, int]:
    """Return where the REST port is now."""
    parts = urlsplit((folder / "url").read_text("utf-8").strip())
    return str(parts.hostname), int(parts.port or 80)


def key_of(folder: Path) -> bytes:
    """Return the public key of the broker, as soon as its REST port tells it; refused or not."""
    while True:
        host, port = web_of(folder)
        with contextlib.suppress(OSError, ValueError, KeyError):
            try:
                with urllib.request.urlopen(
                    f"http://{host}:{port}/health", timeout=PAUSE_S
                ) as said:
                    told = json.load(said)
            except HTTPError as error:
                with error:
                    told = json.load(error)
            return bytes.fromhex(told["server_key"])
        time.sleep(PAUSE_S)


def _connect(address: tuple[str, int]) -> socket.socket:
    peer = socket.create_connection(address, timeout=5)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return peer


def silent(folder: Path, broker_port: int) -> None:
    """Connect to both ports and say nothing."""
    web = web_of(folder)
    with _connect(web) as one, _connect((web[0], broker_port)) as other:
        for peer in (one, other):
            peer.settimeout(LIFE_S / 2)
            peer.recv(64)


def dribble_http(folder: Path, broker_port: int) -> None:
    """Send a request byte by byte, never to its end."""
    del broker_port
    host, port = web_of(folder)
    with _connect((host, port)) as peer:
        _dribble(peer, f"POST /api/tasks/submit HTTP/1.1\r\nHost: {host}\r\nX: ".encode())


def dribble_zmtp(folder: Path, broker_port: int) -> None:
    """Greet the broker byte by byte."""
    with _connect((web_of(folder)[0], broker_port)) as peer:
        _dribble(peer, _GREETING)


def _dribble(peer: socket.socket, text: bytes) -> None:
    for n in range(int(LIFE_S / PAUSE_S)):
        peer.sendall(text[n : n + 1] or b"x")
        time.sleep(PAUSE_S)


def never_read(folder: Path, broker_port: int) -> None:
    """Ask for long lists, one request behind the other, and read no answer."""
    del broker_port
    host, port = web_of(folder)
    request = f"GET /api/tasks?limit=1000 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    with _connect((host, port)) as peer:
        peer.sendall(request * 20)
        time.sleep(LIFE_S)


def submit_and_never_read(folder: Path, broker_port: int, mesh: str) -> None:
    """Submit over ZeroMQ, each client under its own session, and read nothing."""
    context = zmq.Context()
    peers: list[tuple[zmq.Socket[bytes], str, bytes]] = []
    host, key = "", b""
    count = 0
    while not (folder / "stop").exists():
        now_at = web_of(folder)[0]
        if now_at != host:
            host, count = now_at, 0
            for peer, _, _ in peers:
                peer.close(0)
            address, key = f"tcp://{host}:{broker_port}", key_of(folder)
            peers = [_peer(context, address, key) for _ in range(EACH)]
        for peer, session, public in peers:
            if count % (10 * RATE) == 0:  # the broker may be a new one
                proof = proof_of(mesh, key, public)
                hello = ClientHello(VERSIONS[0], mesh, session, "slow", proof=proof)
                _send(peer, encode(hello))
            data = {"text": secrets.token_hex(4), "ms": 0, "log": str(folder)}
            group = Group(TASK_TYPE, 5, [msgspec.msgpack.encode(data)])
            _send(peer, encode(Submit(count + 1, session, count, [group], True)))
        count += 1
        time.sleep(1 / RATE)


def _peer(
    context: zmq.Context[zmq.Socket[bytes]], address: str, server_key: bytes
) -> tuple[zmq.Socket[bytes], str, bytes]:
    peer = context.socket(zmq.DEALER)
    for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.LINGER, 0)):
        peer.set(option, value)
    public, secret = zmq.curve_keypair()
    peer.curve_publickey, peer.curve_secretkey = public, secret
    peer.curve_serverkey = server_key
    peer.connect(address)
    return peer, "".join(secrets.choice(DIGITS) for _ in range(16)), z85.decode(public)


def _send(peer: zmq.Socket[bytes], frame: bytes) -> None:
    with contextlib.suppress(zmq.Again):
        peer.send(frame, zmq.NOBLOCK)


if __name__ == "__main__":
    main()
