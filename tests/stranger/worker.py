"""A worker of somebody else's: plain pyzmq and msgpack, from docs/PROTOCOL.md alone.

    python worker.py ENDPOINT KEY MESH

Offers ``reverse`` (its ``data["text"]`` backwards, letter by letter as chunks) and ``fail``.
"""

import secrets
import socket
import sys
import time

import msgpack
import zmq

GOODBYE, HELLO, HEARTBEAT, RESULTS, CHUNKS = 1, 10, 11, 12, 14
WELCOME, REHELLO, REFUSED, BEAT, WORK, RECEIVED, STOP, LISTENING = 40, 41, 42, 43, 50, 51, 52, 53
FAILED, SUCCEEDED, HOPELESS = 0, 1, 2
TYPES = ["reverse", "fail"]


class Stranger:
    def __init__(self, endpoint: str, key: str, mesh: str) -> None:
        self.endpoint, self.server_key, self.mesh = endpoint, bytes.fromhex(key), mesh
        self.public, self.secret = zmq.curve_keypair()
        self.boot_id = secrets.token_hex(8)
        self.worker_id = "stranger-" + secrets.token_hex(3)
        self.heartbeat_s, self.lease_s = 3.0, 10.0
        self.work_seq = self.result_seq = 0
        self.listened: set[str] = set()
        self.waiting: list[tuple[str, float, str, bytes, bytes]] = []
        self.unacknowledged: dict[int, list[object]] = {}
        self.connect()

    def connect(self) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 300)
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_key)
        self.socket.connect(self.endpoint)
        self.heard = time.monotonic()
        self.hello()

    def say(self, *message: object) -> None:
        self.socket.send(msgpack.packb(list(message)))

    def hello(self) -> None:
        self.work_seq = 0
        ids, tokens = self.held()
        self.said_hello = time.monotonic()
        self.say(
            HELLO, 1, self.mesh, self.worker_id, self.boot_id, "stranger", "machine-1",
            socket.gethostname(), 0, TYPES, [], 1, 1, ids, tokens,
        )  # fmt: skip

    def held(self) -> tuple[list[str], list[bytes]]:
        ids = [task[2] for task in self.waiting]
        tokens = [task[3] for task in self.waiting]
        for message in self.unacknowledged.values():
            ids += message[3]  # type: ignore[arg-type]
            tokens += message[4]  # type: ignore[arg-type]
        return ids, tokens

    def run(self) -> None:
        next_beat = 0.0
        while True:
            if self.socket.poll(200):
                self.heard = time.monotonic()
                self.hear(msgpack.unpackb(self.socket.recv()))
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self.heartbeat_s
                self.say(HEARTBEAT, self.work_seq, 1, 0, 0, TYPES, [], self.held()[0])
            if now - self.heard > self.lease_s:
                self.socket.close()
                self.connect()
            while self.waiting:
                self.work(*self.waiting.pop(0))

    def hear(self, message: list) -> None:  # type: ignore[type-arg]  # noqa: C901  one place, one page
        verb = message[0]
        if verb == WELCOME:
            self.heartbeat_s, self.lease_s, dropped = message[4:7]
            self.waiting = [task for task in self.waiting if task[2] not in dropped]
            for kept in self.unacknowledged.values():
                self.say(*kept)
            print(f"joined as {self.worker_id}", flush=True)
        elif verb == REHELLO:
            self.hello()
        elif verb == REFUSED:
            print("refused:", message[2], message[3], flush=True)
            if message[2] == "worker.id_taken":
                self.worker_id += "-" + self.boot_id[:4]
                self.hello()
        elif verb == WORK:
            self.work_seq = message[1]
            for seq in message[3]:
                self.unacknowledged.pop(seq, None)
            for kind, timeout_s, is_listened, ids, tokens, payloads in message[2]:
                if is_listened:
                    self.listened.update(ids)
                for task in zip(ids, tokens, payloads, strict=True):
                    self.waiting.append((kind, timeout_s, *task))
        elif verb == RECEIVED:
            self.unacknowledged.pop(message[1], None)
        elif verb == STOP:
            self.waiting = [task for task in self.waiting if task[2] not in message[1]]
        elif verb == LISTENING:
            (self.listened.update if message[2] else self.listened.difference_update)(message[1])
        elif verb == GOODBYE:
            self.hello()  # it may be back soon

    def work(self, kind: str, timeout_s: float, task_id: str, token: bytes, payload: bytes) -> None:
        data, started = msgpack.unpackb(payload), time.monotonic()
        if kind == "reverse" and isinstance(data.get("text"), str):
            text = data["text"][::-1]
            for number, letter in enumerate(text if task_id in self.listened else ""):
                self.say(CHUNKS, [task_id], [token], [number], [msgpack.packb(letter)])
            end, result = SUCCEEDED, {"success": True, "output": text}
        elif kind == "fail":
            end, result = FAILED, {"success": False, "error": "this one always fails"}
        else:
            end, result = HOPELESS, {"success": False, "error": f"cannot do this {kind!r}"}
        result |= {"worker_id": self.worker_id, "duration_s": time.monotonic() - started}
        self.result_seq += 1
        answer = [
            RESULTS, self.result_seq, 1, [task_id], [token], bytes([end]), [msgpack.packb(result)],
        ]  # fmt: skip
        self.unacknowledged[self.result_seq] = answer
        self.listened.discard(task_id)
        self.say(*answer)


if __name__ == "__main__":
    Stranger(*sys.argv[1:4]).run()
