"""The raw pyzmq loop that d8mesh is measured against: ROUTER/DEALER, no durability, nothing kept.

One message per task: the broker keeps an in-flight table and credits per worker, so that it
does the least that a dispatcher must. Run as processes of their own: ``python -m bench.raw ROLE``.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Final

import zmq

#: Attempts a worker may hold; as large as d8mesh's prefetch for no-ops.
CREDIT: Final = 1000
#: Tasks the client keeps under way.
WINDOW: Final = 4000
#: The loops end by themselves if nothing comes for this long.
IDLE_MS: Final = 30_000


def broker(port: int) -> None:
    """Forward tasks to the worker with credit, results back to their client."""
    socket = _socket(zmq.ROUTER)
    socket.bind(f"tcp://127.0.0.1:{port}")
    credits: dict[bytes, int] = {}
    waiting: deque[tuple[bytes, bytes, bytes]] = deque()
    in_flight: dict[tuple[bytes, bytes], bytes] = {}
    while socket.poll(IDLE_MS):
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            sender, verb = parts[0], parts[1]
            if verb == b"T":
                waiting.append((sender, parts[2], parts[3]))
            elif verb == b"R":
                client = in_flight.pop((parts[2], parts[3]))
                credits[sender] += 1
                socket.send_multipart([client, parts[3], parts[4]])
            elif verb == b"H":
                credits[sender] = CREDIT
            elif verb == b"Q":
                return
        while waiting:
            worker = max(credits, key=credits.__getitem__, default=None)
            if worker is None or not credits[worker]:
                break
            client, number, payload = waiting.popleft()
            credits[worker] -= 1
            in_flight[client, number] = client
            socket.send_multipart([worker, client, number, payload])


def worker(port: int) -> None:
    """Echo every task."""
    socket = _socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send_multipart([b"H"])
    while socket.poll(IDLE_MS):
        while True:
            try:
                client, number, payload = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            socket.send_multipart([b"R", client, number, payload])


def client(port: int, count: int, payload: bytes) -> None:
    """Send `count` tasks and wait for their results, `WINDOW` of them under way."""
    socket = _socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    sent = done = 0
    while done < count:
        while sent < count and sent - done < WINDOW:
            socket.send_multipart([b"T", b"%d" % sent, payload])
            sent += 1
        if not socket.poll(IDLE_MS):
            raise TimeoutError(f"{done} of {count} tasks came back")
        while done < sent:
            try:
                socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            done += 1
    socket.close(0)


def stop(port: int) -> None:
    """End the broker."""
    socket = _socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send_multipart([b"Q"])
    socket.close(1000)


def _socket(kind: int) -> zmq.Socket[bytes]:
    """Return a socket whose queues have no bound: a ROUTER drops what does not fit."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    return socket


if __name__ == "__main__":
    role, number = sys.argv[1], int(sys.argv[2])
    (broker if role == "broker" else worker)(number)
