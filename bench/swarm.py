"""Many workers in few processes: honest DEALERs with one slot each, heartbeats and all.

``python -m bench.swarm DIALECT PORT MESH KEY FIRST COUNT`` is one process with COUNT workers that
echo a constant; it prints ``up`` when all have joined. DIALECT is ``d8mesh`` for the protocol
of `docs/PROTOCOL.md`, KEY the orchestrator's in hex; ``raw`` is that of the raw loop, in clear.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

import zmq

from bench.raw import unbounded
from bench.raw_loop import HOME, python
from d8mesh.core.protocol.codec import decode_to_worker, encode
from d8mesh.core.protocol.messages import (
    SUCCEEDED,
    Heartbeat,
    Received,
    Rehello,
    Results,
    Welcome,
    Work,
    WorkerHello,
)
from d8mesh.errors import D8Error

#: The head of a msgpack map {"success": true, "output": …}; the task's data follows.
RESULT_HEAD: Final = b"\x82\xa7success\xc3\xa6output"
PROCESSES: Final = 2
#: Files a socket of libzmq needs, and room for the process itself.
FILES_EACH: Final = 4
FILES_SPARE: Final = 500
LOOK_S: Final = 0.05
HELLO_S: Final = 3.0
#: Two thousand have joined in a few seconds.
JOIN_S: Final = 120.0
TYPES: Final = ["echo"]


class OneSlot:
    """A worker with one slot that speaks the d8mesh protocol and ends every task at once."""

    def __init__(self, port: int, server_key: bytes, mesh: str, name: str) -> None:
        self.socket = unbounded(zmq.DEALER)
        self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()
        self.socket.curve_serverkey = server_key
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 10)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self._mesh, self._name, self._boot_id = mesh, name, secrets.token_hex(8)
        self._seq = self._work_seq = 0
        self._kept: dict[int, Results] = {}
        self.next_word = 0.0
        self.heartbeat_s = 0.0
        self.handed = self.done = 0

    def hello(self, now: float) -> None:
        """Open the session, or open it again."""
        self._work_seq, self.next_word = 0, now + HELLO_S
        ids, tokens = self._held()
        self.socket.send(
            encode(
                WorkerHello(
                    *(1, self._mesh, self._name, self._boot_id, "swarm", "bench", "bench", 0),
                    *(TYPES, [], 1, 1, ids, tokens),
                )
            )
        )

    def heartbeat(self, now: float) -> None:
        """Say that it lives and what it holds."""
        self.next_word = now + self.heartbeat_s
        ids, _ = self._held()
        self.socket.send(encode(Heartbeat(self._work_seq, 1, 0, 0, TYPES, [], ids)))

    def speak(self, now: float) -> None:
        """Say what is due, and hear what came meanwhile: sending takes its signal away."""
        (self.heartbeat if self.heartbeat_s else self.hello)(now)
        self.hear()

    def hear(self) -> None:
        """Take in all that has come, ending each task at once."""
        while True:
            try:
                message = decode_to_worker(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if type(message) is Work:
                for seq in message.received:
                    self._forget(seq)
                self._run(message)
            elif type(message) is Received:
                self._forget(message.seq)
            elif type(message) is Welcome:
                self.heartbeat_s = message.heartbeat_s
                for kept in self._kept.values():
                    self.socket.send(encode(kept))
            elif type(message) is Rehello:
                self.hello(time.monotonic())

    def _forget(self, seq: int) -> None:
        kept = self._kept.pop(seq, None)
        self.done += len(kept.ids) if kept else 0

    def _run(self, work: Work) -> None:
        self._work_seq = work.seq
        for seq in work.received:
            self._forget(seq)
        for group in work.groups:
            count = len(group.ids)
            self.handed += count
            self._seq += 1
            results = Results(
                *(self._seq, 1, group.ids, group.tokens),
                *(bytes([SUCCEEDED]) * count, [RESULT_HEAD + data for data in group.payloads]),
            )
            self._kept[self._seq] = results
            self.socket.send(encode(results))

    def _held(self) -> tuple[list[str], list[bytes]]:
        kept = self._kept.values()
        return [i for each in kept for i in each.ids], [t for each in kept for t in each.tokens]


class RawSlot:
    """A worker of the raw loop with a credit of one."""

    heartbeat_s = 1e9  # it has none: it has joined when it has spoken once

    def __init__(self, port: int) -> None:
        self.socket = unbounded(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.next_word = 0.0

    def speak(self, now: float) -> None:
        """Offer its slot, once."""
        self.next_word = now + self.heartbeat_s
        self.socket.send_multipart([b"H", b"1"])
        self.hear()

    def hear(self) -> None:
        """Echo all that has come."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart([b"R", *parts])


def serve(workers: list[OneSlot] | list[RawSlot]) -> None:
    """Run them all on one thread until the process is ended."""
    selector = selectors.DefaultSelector()
    for each in workers:
        selector.register(int(each.socket.get(zmq.FD)), selectors.EVENT_READ, each)
    said = False
    next_look = 0.0
    while True:
        for key, _ in selector.select(LOOK_S):
            key.data.hear()
        now = time.monotonic()
        if now < next_look:
            continue
        next_look = now + LOOK_S
        for each in workers:
            if now >= each.next_word:
                each.speak(now)
        if not said and all(each.heartbeat_s for each in workers):
            said = True
            print("up", flush=True)


@contextlib.contextmanager
def swarm(dialect: str, port: int, mesh: str, count: int, server_key: bytes) -> Iterator[None]:
    """Run `count` workers in `PROCESSES` processes; yields when all have joined."""
    key = server_key.hex() or "-"
    processes = []
    try:
        for number in range(min(PROCESSES, count)):
            share = count // PROCESSES + (number < count % PROCESSES)
            command = python("bench.swarm", dialect, port, mesh, key, number, share)
            processes.append(subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE))
        for process in processes:
            _await_up(process)
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _await_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    watch = threading.Timer(JOIN_S, process.kill)
    watch.start()
    try:
        if process.stdout.readline().strip() != b"up":
            raise D8Error(f"the simulated workers did not join within {JOIN_S:.0f} s")
    finally:
        watch.cancel()


def main(arguments: list[str]) -> None:
    """Be one process of the swarm."""
    dialect, port, mesh, key, number, count = arguments
    zmq.Context.instance().set(zmq.MAX_SOCKETS, int(count) + 16)
    if dialect == "raw":
        serve([RawSlot(int(port)) for _ in range(int(count))])
    names = [f"swarm-{number}-{n}" for n in range(int(count))]
    serve([OneSlot(int(port), bytes.fromhex(key), mesh, name) for name in names])


if __name__ == "__main__":
    main(sys.argv[1:])
