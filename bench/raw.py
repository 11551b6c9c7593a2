"""The raw pyzmq loops that d8mesh is measured against: ROUTER/DEALER, nothing kept on a disk.

``broker`` and ``worker`` send one message per task: the broker keeps an in-flight table and a
queue of free slots, so that it does the least that a dispatcher must. The ``batched`` ones
send 100 tasks per message, and the broker still tracks each task. ``synced_broker`` writes and
syncs a block when tasks have come in (after handing them out) and before it answers: the least
that a durable loop must do, and so the floor on a given disk. ``bare`` answers by itself: one
hop and back. Run as processes of their own: ``python -m bench.raw ROLE PORT``.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import zmq

#: Attempts a worker may hold; as large as d8mesh's prefetch for no-ops.
CREDIT: Final = 1000
#: Tasks the client keeps under way, and how many bytes of them.
WINDOW: Final = 4000
WINDOW_BYTES: Final = 64_000_000
#: Tasks in one message of the batched loop.
BATCH: Final = 100
#: The loops end by themselves if nothing comes for this long.
IDLE_MS: Final = 600_000
#: A client gives up if nothing comes for this long.
CLIENT_IDLE_MS: Final = 60_000

#: What the synced broker writes at once, and how long its file is.
BLOCK_BYTES: Final = 4096
LOG_BYTES: Final = 16_000_000

_sync_data: Final = getattr(os, "fdatasync", os.fsync)
_encode: Final = msgspec.msgpack.Encoder().encode
_Tasks = tuple[list[int], list[bytes]]
_decode: Final = msgspec.msgpack.Decoder(_Tasks).decode


def broker(port: int, sync: Callable[[], None] | None = None) -> None:
    """Forward each task to a free slot, each result back to its client.

    Args:
        port: where to listen.
        sync: has what came in on the disk; None: nothing is kept.
    """
    socket = _bound(port)
    free: deque[bytes] = deque()
    waiting: deque[tuple[bytes, bytes, bytes]] = deque()
    in_flight: dict[tuple[bytes, bytes], bytes] = {}
    answers: list[list[bytes]] = []
    answer: Callable[[list[bytes]], object] = socket.send_multipart if not sync else answers.append
    joined = 0
    while socket.poll(IDLE_MS):
        is_new = False
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            sender, verb = parts[0], parts[1]
            if verb == b"T":
                waiting.append((sender, parts[2], parts[3]))
                is_new = True
            elif verb == b"R":
                client = in_flight.pop((parts[2], parts[3]))
                free.append(sender)
                answer([client, parts[3], parts[4]])
            elif verb == b"H":
                joined += 1
                free.extend([sender] * int(parts[2]))
            elif verb == b"N":
                socket.send_multipart([sender, b"%d" % joined])
            elif verb == b"Q":
                return
        while waiting and free:
            worker, (client, number, payload) = free.popleft(), waiting.popleft()
            in_flight[client, number] = client
            socket.send_multipart([worker, client, number, payload])
        if sync is not None and (is_new or answers):
            sync()
            for message in answers:
                socket.send_multipart(message)
            answers.clear()


def synced_broker(port: int) -> None:
    """Be a `broker` that loses nothing: one write and one sync for all that came in together."""
    block = secrets.token_bytes(BLOCK_BYTES)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(LOG_BYTES))  # as the journal: a sync of bytes that are there is quicker
        os.fsync(file.fileno())

        def sync() -> None:
            if file.tell() + BLOCK_BYTES > LOG_BYTES:
                file.seek(0)
            file.write(block)
            _sync_data(file.fileno())

        file.seek(0)
        broker(port, sync)


def worker(port: int) -> None:
    """Echo every task."""
    socket = _connected(port)
    socket.send_multipart([b"H", b"%d" % CREDIT])
    while socket.poll(IDLE_MS):
        while True:
            try:
                client, number, payload = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            socket.send_multipart([b"R", client, number, payload])


def client(port: int, count: int, payload: bytes) -> None:
    """Send `count` tasks and wait for their results, a window of them under way."""
    socket = _connected(port)
    window = _window(payload)
    sent = done = 0
    while done < count:
        while sent < count and sent - done < window:
            socket.send_multipart([b"T", b"%d" % sent, payload])
            sent += 1
        _await(socket, done, count)
        while done < sent:
            try:
                socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            done += 1
    socket.close(0)


def round_trips(port: int, count: int, payload: bytes) -> list[float]:
    """Return the seconds of each of `count` tasks, one in flight.

    One more goes before them: it pays for the connection.
    """
    socket = _connected(port)
    times = []
    for number in range(count + 1):
        begun = time.perf_counter()
        socket.send_multipart([b"T", b"%d" % number, payload])
        socket.recv_multipart()
        times.append(time.perf_counter() - begun)
    socket.close(0)
    return times[1:]


def open_loop(port: int, schedule: Sequence[float], payload: bytes) -> list[float]:
    """Send each task when its time has come; return the seconds from then to its result.

    Args:
        port: the broker's.
        schedule: seconds from the start, ascending; nobody waits for an answer to send.
        payload: of each task.
    """
    socket = _connected(port)
    times: list[float] = []
    sent, count = 0, len(schedule)
    begun = time.perf_counter()
    while len(times) < count:
        now = time.perf_counter() - begun
        while sent < count and schedule[sent] <= now:
            socket.send_multipart([b"T", b"%d" % sent, payload])
            sent += 1
        pause_s = schedule[sent] - now if sent < count else 1.0
        if 0 < pause_s < 0.001 and not socket.poll(0):
            time.sleep(pause_s)  # a poll knows no time below a millisecond
        if socket.poll(max(0, min(1000, int(pause_s * 1000)))):
            while True:
                try:
                    number = int(socket.recv_multipart(zmq.NOBLOCK)[0])
                except zmq.Again:
                    break
                times.append(time.perf_counter() - begun - schedule[number])
    socket.close(0)
    return times


# ------------------------------------------------------------------ 100 tasks per message


def batched_broker(port: int) -> None:
    """Forward batches of tasks to the worker with the most credit, tracking each task."""
    socket = _bound(port)
    credits: dict[bytes, int] = {}
    waiting: deque[tuple[bytes, _Tasks]] = deque()
    in_flight: dict[tuple[bytes, int], bytes] = {}
    while socket.poll(IDLE_MS):
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            sender, verb = parts[0], parts[1]
            if verb == b"T":
                waiting.append((sender, _decode(parts[2])))
            elif verb == b"R":
                client = parts[2]
                numbers, _ = _decode(parts[3])
                for number in numbers:
                    del in_flight[client, number]
                credits[sender] += len(numbers)
                socket.send_multipart([client, parts[3]])
            elif verb == b"H":
                credits[sender] = CREDIT
            elif verb == b"N":
                socket.send_multipart([sender, b"%d" % len(credits)])
            elif verb == b"Q":
                return
        while waiting:
            worker = max(credits, key=credits.__getitem__, default=b"")
            if credits.get(worker, 0) <= 0:
                break
            client, tasks = waiting.popleft()
            credits[worker] -= len(tasks[0])
            in_flight.update(((client, number), worker) for number in tasks[0])
            socket.send_multipart([worker, client, _encode(tasks)])


def batched_worker(port: int) -> None:
    """Echo every task of every batch."""
    socket = _connected(port)
    socket.send_multipart([b"H"])
    while socket.poll(IDLE_MS):
        while True:
            try:
                client, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            numbers, payloads = _decode(frame)
            socket.send_multipart([b"R", client, _encode((numbers, list(payloads)))])


def batched_client(port: int, count: int, payload: bytes) -> None:
    """Send `count` tasks in batches and wait for their results."""
    socket = _connected(port)
    window = _window(payload)
    size = min(BATCH, window)
    sent = done = 0
    while done < count:
        while sent < count and sent - done < window:
            numbers = list(range(sent, min(count, sent + size)))
            socket.send_multipart([b"T", _encode((numbers, [payload] * len(numbers)))])
            sent += len(numbers)
        _await(socket, done, count)
        while done < sent:
            try:
                (frame,) = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            done += len(_decode(frame)[0])
    socket.close(0)


def bare(port: int) -> None:
    """Answer every task at once: the round trip without a worker behind it."""
    socket = _bound(port)
    while socket.poll(IDLE_MS):
        parts = socket.recv_multipart()
        if parts[1] == b"Q":
            return
        socket.send_multipart([parts[0], *parts[2:]])


def await_workers(port: int, count: int) -> None:
    """Wait until `count` workers have come to a broker.

    Raises:
        TimeoutError: they did not within `CLIENT_IDLE_MS`.
    """
    socket = _connected(port)
    until = time.monotonic() + CLIENT_IDLE_MS / 1000
    while time.monotonic() < until:
        socket.send_multipart([b"N"])
        if socket.poll(1000) and int(socket.recv_multipart()[0]) >= count:
            socket.close(0)
            return
        time.sleep(0.01)
    socket.close(0)
    raise TimeoutError(f"{count} workers of the raw loop did not come")


def stop(port: int) -> None:
    """End a broker."""
    socket = _connected(port)
    socket.send_multipart([b"Q"])
    socket.close(1000)


# ----------------------------------------------------------------------------- sockets


def unbounded(kind: int) -> zmq.Socket[bytes]:
    """Return a socket whose queues have no bound: a ROUTER drops what does not fit."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    return socket


def _bound(port: int) -> zmq.Socket[bytes]:
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 8192)
    socket = unbounded(zmq.ROUTER)
    socket.bind(f"tcp://127.0.0.1:{port}")
    return socket


def _connected(port: int) -> zmq.Socket[bytes]:
    socket = unbounded(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def _window(payload: bytes) -> int:
    return max(2, min(WINDOW, WINDOW_BYTES // max(1, len(payload))))


def _await(socket: zmq.Socket[bytes], done: int, count: int) -> None:
    if not socket.poll(CLIENT_IDLE_MS):
        raise TimeoutError(f"{done} of {count} tasks came back")


ROLES: Final[dict[str, Callable[[int], None]]] = {
    "broker": broker,
    "synced_broker": synced_broker,
    "synced_worker": worker,
    "worker": worker,
    "batched_broker": batched_broker,
    "batched_worker": batched_worker,
    "bare": bare,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](int(sys.argv[2]))
