"""Bad input over ZeroMQ, sent for real: the connection ends, one is counted, others go on.

The numbers are those of the list in ``docs/SECURITY.md``.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.edge.transport.byte_guard import UNFINISHED
from d8mesh.edge.transport.connections import (
    CROWD,
    FRAME,
    HANDSHAKE,
    MAX_UNHEARD_PER_ADDRESS,
    SILENT,
)
from d8mesh.edge.transport.keys import KeyPair
from tests.end_to_end.processes import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_zmtp import MORE, RawZmtp, frame, greeting, needs_sodium

#: A connection that is no good ends within this.
CLOSED_S = 3.0
#: What an endless message may have the broker hold before it is noticed, on a busy machine over
#: loopback: a LAN brings a tenth of that.
MOST_GROWTH_BYTES = 700_000_000


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


class Door:
    """The broker's port, as somebody on the LAN sees it who knows the orchestrator's key."""

    def __init__(self, abused: Abused) -> None:
        self.port = abused.mesh.broker_port
        self.server_key = bytes.fromhex(abused.health()["server_key"])
        self.mesh = abused.mesh.config.mesh

    def connect(self, said: bytes = b"") -> RawZmtp:
        made = RawZmtp(self.port)
        made.socket.sendall(said)
        return made

    def shake_hands(self, keys: KeyPair | None = None) -> RawZmtp:
        return RawZmtp(self.port).shake_hands(self.server_key, keys)

    def join(self, keys: KeyPair | None = None) -> RawZmtp:
        """Be a client as it should be."""
        made = self.shake_hands(keys)
        made.send(encode(m.ClientHello(1, self.mesh, f"{os.getpid():010d}abcdef", "stranger")))
        assert isinstance(decode_to_client(made.receive()), m.Welcome)
        return made


@pytest.fixture
def door(abused: Abused) -> Door:
    return Door(abused)


def trickle(door: Door, said: bytes, pause_s: float) -> bool:
    """Say it byte by byte; return whether the connection was closed in time all the same."""
    begun = time.monotonic()
    with door.connect() as odd:
        try:
            for each in said:
                odd.socket.sendall(bytes([each]))
                time.sleep(pause_s)
        except OSError:
            pass
        left_s = CLOSED_S - (time.monotonic() - begun)
        return odd.ends_within(max(0.01, left_s))


# --------------------------------------------------------------------- 19: no ZMTP at all


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: orchestrator:7010\r\n\r\n", HANDSHAKE),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506), HANDSHAKE),
        (b"SSH-2.0-OpenSSH_9.9\r\n", HANDSHAKE),
        (b"\0" * 5000, HANDSHAKE),
        (bytes(range(1, 200)) * 50, HANDSHAKE),
        (b"", SILENT),
        (b"\xff", SILENT),
        (greeting("CURVE")[:30], SILENT),
    ],
    ids=["http", "tls", "ssh", "zeros", "garbage", "silence", "one byte", "half a greeting"],
)
def test_19_what_is_no_zmtp_is_closed_within_three_seconds(
    abused: Abused, door: Door, said: bytes, code: str
) -> None:
    with abused.refused("broker", code), door.connect(said) as odd:
        assert odd.ends_within(CLOSED_S)


def test_19_a_greeting_that_dribbles_is_closed_within_three_seconds(
    abused: Abused, door: Door
) -> None:
    with abused.refused("broker", SILENT):
        assert trickle(door, greeting("CURVE")[:60], 0.1)


# ------------------------------------------------- 20: old, open, and messages without end


@pytest.mark.parametrize(
    "said",
    [
        b"\x01\x00\x0f\x00hello, this is 1",
        b"\xff" + bytes(7) + b"\x01\x7f\x01\x05\x00\x00" + frame(0, b"hello"),
        greeting("NULL", version=b"\x03\x00")
        + frame(4, b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER")
        + frame(0, b"hello"),
        greeting("PLAIN") + frame(4, b"\x05HELLO\x05admin\x05admin"),
        greeting("CURVE") + frame(4, b"\x05HELLO\x01\x00" + bytes(192)),
    ],
    ids=["ZMTP 1", "ZMTP 2", "NULL", "PLAIN", "a box that nobody sealed"],
)
def test_20_old_versions_and_no_encryption_are_refused(
    abused: Abused, door: Door, said: bytes
) -> None:
    with abused.refused("broker", HANDSHAKE), door.connect(said) as odd:
        assert odd.ends_within(CLOSED_S)


@needs_sodium
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bytes are not counted")
@pytest.mark.parametrize("size", [0, 200_000], ids=["empty frames", "large frames"])
@pytest.mark.parametrize("has_joined", [False, True])
def test_20_a_message_of_ever_more_frames_is_ended_and_memory_is_bounded(
    abused: Abused, door: Door, has_joined: bool, size: int
) -> None:
    broker = abused.node("_broker")
    before, most, is_over = broker.rss_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_over.wait(0.02):
            most = max(most, broker.rss_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with abused.refused("broker", UNFINISHED):
            with door.join() if has_joined else door.shake_hands() as odd:
                _send_until_cut(odd, bytes(size))
    finally:
        is_over.set()
        watching.join()
    assert most - before < MOST_GROWTH_BYTES


def _send_until_cut(odd: RawZmtp, content: bytes) -> None:
    try:
        while True:
            odd.socket.sendall(b"".join(odd.sealed(content, MORE) for _ in range(50)))
    except (BrokenPipeError, ConnectionResetError):
        pass


# ------------------------------------------------------------------------ 22: thousands


def _knock_often(door: Door, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        made.append(socket.create_connection(("127.0.0.1", door.port), 20))
    return made


def test_22_two_thousand_connections_are_capped_and_the_others_go_on(
    abused: Abused, door: Door
) -> None:
    before = abused.rejected()
    made = _knock_often(door, 2000)
    try:
        until(lambda: (abused.rejected() - before).total() == 2000, "each is counted")
    finally:
        for each in made:
            each.close()
    told = abused.rejected() - before
    assert set(told) <= {("broker", CROWD), ("broker", SILENT)}
    # What was silent for its time makes room for others.
    assert told["broker", CROWD] >= 2000 - 2 * MAX_UNHEARD_PER_ADDRESS
    abused.goes_on()
    (worker,) = abused.health()["workers"] if "workers" in abused.health() else (None,)
    del worker


# ------------------------------------------------------------------- 23: oversize frames


@needs_sodium
@pytest.mark.parametrize("size", [m.MAX_FRAME_BYTES + 1000, 1 << 32, (1 << 63) - 1])
def test_23_a_frame_that_is_too_large_ends_its_connection(
    abused: Abused, door: Door, size: int
) -> None:
    with abused.refused("broker", FRAME), door.join() as odd:
        odd.socket.sendall(b"\x02" + struct.pack(">Q", size) + bytes(1000))
        assert odd.ends_within(CLOSED_S)
