"""Connections to the broker that have keys and say what they like."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from d8mesh.apps.orchestrators import ask
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.edge.transport.keys import KeyPair, new_pair
from d8mesh.edge.transport.sockets import DealerLink
from tests.keyed import link_to
from tests.nodes.running import until
from tests.security.abuse import Abused

PATIENCE_S: Final = 20.0
#: The type of task that they offer.
ABUSE: Final = "abused"
#: Sessions of raw clients: as drawn at random, and told apart.
SESSIONS = iter(f"{n:0>16}" for n in range(1, 10**6))

FROM_CLIENTS: Final = (
    m.Submit(1, "0123456789abcdef", 0, [m.Group("echo", 5, [b"\x80"])]),
    m.Watch([]),
    m.Query(1, "health", {}),
    m.ChangeMembers(1, "revoke", "anybody"),
    m.Delivered(1, ["0123456789abcdef-0"], [b""]),
)
FROM_WORKERS: Final = (
    m.Heartbeat(1, 1, 0, 0, [ABUSE], [], []),
    m.Results(1, 1, ["0123456789abcdef-0"], [b"t" * 16], bytes([m.SUCCEEDED]), [b"\x80"]),
    m.Release(1, ["0123456789abcdef-0"], [b"t" * 16]),
    m.Chunks(["0123456789abcdef-0"], [b"t" * 16], [0], [b"\x80"]),
)


class Raw:
    """A connection that says what it likes, with a key of its own."""

    def __init__(self, abused: Abused, keys: KeyPair | None = None) -> None:
        told = ask(abused.mesh.url, "/health")
        self.mesh, self.keys = str(told["mesh"]), keys or new_pair()
        self.server_key = bytes.fromhex(told["server_key"])
        port = int(told["broker_port"])
        self.link: DealerLink = link_to(port, server_key=self.server_key, keys=self.keys)

    def say(self, *said: m.Message | bytes) -> None:
        for each in said:
            frame = each if isinstance(each, bytes) else encode(each)
            deadline = time.monotonic() + PATIENCE_S
            while not self.link.send(frame):
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def heard(self) -> list[m.Message]:
        """Return what a client of this connection has been told and has not read."""
        return [decode_to_client(frame) for frame in self.link.receive(100)]

    def refused(self, code: str) -> m.Refused:
        said = until(self.link, m.Refused)
        assert said.code == code, said
        return said

    def worker(self, name: str = "raw", *, types: list[str] | None = None) -> m.WorkerHello:
        kinds = [ABUSE] if types is None else types
        return m.WorkerHello(1, self.mesh, name, "b", "t", "x", "h", 0, kinds, [], 1, 1, [], [])

    def client(self) -> m.ClientHello:
        return m.ClientHello(1, self.mesh, next(SESSIONS), "raw")

    def join(self, hello: m.WorkerHello | m.ClientHello) -> None:
        self.say(hello)
        until(self.link, m.Welcome)


@contextlib.contextmanager
def raw(abused: Abused, keys: KeyPair | None = None) -> Iterator[Raw]:
    made = Raw(abused, keys)
    try:
        yield made
    finally:
        made.link.close()
