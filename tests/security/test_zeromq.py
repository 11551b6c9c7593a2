"""Bad input over ZeroMQ, sent for real: the connection ends, one is counted, others go on.

The numbers are those of the list of bad inputs, of which `tests/security` has every one.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil
import pytest

from bench.abusers import AbuseJob, abusers_beside
from d8mesh.apps.orchestrators import ask
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.edge.transport.byte_guard import UNFINISHED
from d8mesh.edge.transport.connections import (
    ASKED_NAME,
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
        self.server_key = bytes.fromhex(ask(abused.mesh.url, "/health")["server_key"])
        self.mesh = abused.mesh.config.mesh

    def connect(self, said: bytes = b"") -> RawZmtp:
        made = RawZmtp(self.port)
        made.socket.sendall(said)
        return made

    def shake_hands(self, keys: KeyPair | None = None, *, name: bytes = b"") -> RawZmtp:
        return RawZmtp(self.port).shake_hands(self.server_key, keys, name=name)

    def join(self, keys: KeyPair | None = None) -> RawZmtp:
        """Be a client as it should be."""
        made, session = self.shake_hands(keys), secrets.token_hex(8)
        made.send(encode(m.ClientHello(1, self.mesh, session, "stranger")))
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
@pytest.mark.parametrize(
    ("has_joined", "size"),
    [(False, 0), (False, 200_000), (True, 200_000)],
    ids=["empty frames", "large frames", "large frames of a client"],
)
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


# ------------------------------------------- 20: names that are asked for in the handshake

#: What counters of ROUTERs begin with in a process where nobody has given the C library's random
#: numbers a seed: those of the first ones, as glibc has them.
UNSEEDED = (0x6B8B4567, 0xE43C9869, 0xF4B0DC51)
#: Connections that a broker of these tests may have had by then.
NAMES_AHEAD = 60


@needs_sodium
def test_20_names_of_connections_that_are_yet_to_come_do_not_end_the_process(
    abused: Abused, door: Door
) -> None:
    with contextlib.ExitStack() as stack:
        for start in UNSEEDED:
            for number in range(start, start + NAMES_AHEAD):
                stack.enter_context(door.shake_hands(name=number.to_bytes(5, "big")))
        for _ in range(NAMES_AHEAD):
            door.join().close()
        abused.goes_on()
    abused.check()


@needs_sodium
@pytest.mark.parametrize("name", [b"worker-1", b"\0\1", b"x" * 255])
def test_20_a_connection_that_asks_for_a_name_is_closed(
    abused: Abused, door: Door, name: bytes
) -> None:
    with abused.refused("broker", ASKED_NAME), door.shake_hands(name=name) as odd:
        odd.send(encode(m.ClientHello(1, door.mesh, secrets.token_hex(8), "stranger")))
        assert odd.ends_within(CLOSED_S)


# ------------------------------------------------------------------------ 22: thousands


def connections_of(abused: Abused) -> set[int]:
    """Return the ports from which the workers are connected to the broker."""
    found: set[int] = set()
    for worker in abused.mesh.workers:
        for each in psutil.Process(worker.process.pid).net_connections("tcp"):
            if each.raddr and each.raddr.port == abused.mesh.broker_port:
                found.add(each.laddr.port)
    assert found
    return found


def _is_open(door: Door) -> bool:
    """Return whether who knocks now is let in: those before have left."""
    with contextlib.suppress(OSError, AssertionError), door.connect() as probe:
        return not probe.ends_within(0.3)
    return False


@contextlib.contextmanager
def _knocked(door: Door, count: int) -> Iterator[None]:
    """Have so many connections, but for those that are closed while they are being made."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(ConnectionError):
                made = socket.create_connection(("127.0.0.1", door.port), 20)
                stack.enter_context(made)
        yield


def test_22_two_thousand_connections_are_capped_and_the_others_go_on(
    abused: Abused, door: Door
) -> None:
    before, linked = abused.rejected(), connections_of(abused)
    with _knocked(door, 2000):
        fewest = 2000 - 3 * MAX_UNHEARD_PER_ADDRESS  # silent ones make room for others
        until(lambda: (abused.rejected() - before)["broker", CROWD] >= fewest, "they are capped")
    until(lambda: _is_open(door), "there is room again")
    told = abused.rejected() - before
    assert set(told) <= {("broker", CROWD), ("broker", SILENT)}
    assert told.total() <= 2000 + MAX_UNHEARD_PER_ADDRESS
    abused.goes_on()
    assert connections_of(abused) == linked


@needs_sodium
def test_22_so_are_connections_that_shake_hands_and_say_no_more(abused: Abused, door: Door) -> None:
    count, linked = MAX_UNHEARD_PER_ADDRESS + 100, connections_of(abused)
    made: list[RawZmtp] = []
    try:
        before = abused.rejected()
        for _ in range(count):
            with contextlib.suppress(OSError):  # the cap was there before the handshake's end
                made.append(door.shake_hands())
        until(lambda: (abused.rejected() - before)["broker", CROWD] >= 90, "they are capped")
        abused.goes_on()
        assert connections_of(abused) == linked
    finally:
        for each in made:
            each.close()
        until(lambda: _is_open(door), "there is room again")


@needs_sodium
def test_22_who_comes_and_goes_all_the_time_keeps_no_newcomer_out(
    abused: Abused, door: Door
) -> None:
    is_over, knocks = threading.Event(), itertools.count()
    reset = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

    def come_and_go() -> None:
        while not is_over.is_set():
            with contextlib.suppress(ConnectionError), socket.socket() as odd:
                odd.connect(("127.0.0.1", door.port))
                odd.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                next(knocks)

    with abused.refused_as({}), ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(come_and_go)
        try:
            for _ in range(30):
                door.join().close()
        finally:
            is_over.set()
    assert next(knocks) > 30


# ------------------------------------------------------------------- 23: oversize frames


@needs_sodium
@pytest.mark.parametrize("size", [m.MAX_FRAME_BYTES + 1000, 1 << 32, (1 << 63) - 1])
def test_23_a_frame_that_is_too_large_ends_its_connection(
    abused: Abused, door: Door, size: int
) -> None:
    with abused.refused("broker", FRAME), door.join() as odd:
        odd.socket.sendall(b"\x02" + struct.pack(">Q", size) + bytes(1000))
        assert odd.ends_within(CLOSED_S)


# ------------------------------------------------------------------- 24: what is no message

_SUBMIT = encode(m.Submit(1, "0123456789abcdef", 0, [m.Group("echo", 5, [b"x"])]))
_QUERY = encode(m.Query(1, "tasks", {}))[:-1]


@needs_sodium
@pytest.mark.parametrize(
    "content",
    [
        b"",
        _SUBMIT[:-1],
        _SUBMIT[:10],
        _SUBMIT + b"\xc0",
        _SUBMIT * 2,
        _SUBMIT.replace(b"echo", b"ec\xff\xfe"),
        _QUERY + b"\x81\xa1x" + b"\x91" * 50_000 + b"\xc0",
        _QUERY + b"\x81\xa1x\xdd\xff\xff\xff\xff",
        _QUERY + b"\xdf\xff\xff\xff\xff",
        _QUERY + b"\x81\xa1x\xc6\xff\xff\xff\xff" + b"x" * 100,
        _QUERY + b"\x81\xa1x\xdd\x00\x98\x96\x80" + b"\x90" * 10_000_000,
        _SUBMIT[:-10] + b"\xc7\x08\x05" + bytes(8),
        b"\xc1" * 100,
        b"\x80",
        b"{\"type\": \"echo\"}",
        b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    ],
    ids=[
        "empty", "truncated", "cut short", "trailing", "twice", "no UTF-8", "nested",
        "announced array", "announced map", "announced bytes", "ten million arrays", "extension",
        "unused byte", "a map", "JSON", "pickle",
    ],
)  # fmt: skip
def test_24_what_is_no_message_is_dropped_with_a_strike_and_takes_no_memory(
    abused: Abused, door: Door, content: bytes
) -> None:
    broker = abused.node("_broker")
    with door.join() as odd:
        before = broker.rss_bytes()
        with abused.refused("broker", "protocol.invalid"):
            odd.send(content)
            told = decode_to_client(odd.receive())
            assert isinstance(told, m.Refused)
            assert (told.seq, told.code) == (0, "protocol.invalid")
        assert broker.rss_bytes() - before < 4 * len(content) + 30_000_000
        odd.send(encode(m.Query(7, "health", {})))  # a strike is not the end
        while isinstance(told, m.Refused):
            told = decode_to_client(odd.receive())
        assert isinstance(told, m.Answer | m.Beat)


# -------------------------------------------------- 25: frames, verbs and versions unknown


@needs_sodium
@pytest.mark.parametrize("parts", [2, 3, 1000])
def test_25_a_message_of_several_frames_is_dropped_whole_and_counted_once(
    abused: Abused, door: Door, parts: int
) -> None:
    with door.join() as odd, abused.refused("broker", "protocol.invalid"):
        for n in range(parts):
            odd.send(_SUBMIT, MORE if n < parts - 1 else 0)
        told = decode_to_client(odd.receive())
        assert isinstance(told, m.Refused)
        assert told.code == "protocol.invalid"


@needs_sodium
@pytest.mark.parametrize("verb", [0, 2, 9, 18, 39, 40, 43, 50, 99, -1, 1 << 63])
def test_25_an_unknown_verb_is_dropped_and_counted(abused: Abused, door: Door, verb: int) -> None:
    with door.join() as odd, abused.refused("broker", "protocol.invalid"):
        odd.send(msgspec.msgpack.encode([verb, 1, 2]))
        told = decode_to_client(odd.receive())
        assert isinstance(told, m.Refused)
        assert told.code == "protocol.invalid"


@needs_sodium
@pytest.mark.parametrize("version", [0, 2, 99, 1 << 40])
@pytest.mark.parametrize("fields", [0, 2, 30])
def test_25_an_unknown_version_is_answered_once_with_the_versions_spoken(
    abused: Abused, door: Door, version: int, fields: int
) -> None:
    with door.shake_hands() as odd, abused.refused("broker", "protocol.version"):
        odd.send(msgspec.msgpack.encode([20, version, *["new"] * fields]))
        told = decode_to_client(odd.receive())
        assert isinstance(told, m.Refused)
        assert (told.seq, told.code) == (0, "protocol.version")
        assert told.message == f"version {version}: spoken here are 1"
        odd.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            odd.receive()


# ------------------------------------------------------------- all of them at the same time


def _done_within(abused: Abused, seconds: float) -> int:
    before, until_s = abused.neighbour.done, time.monotonic() + seconds
    while time.monotonic() < until_s:
        time.sleep(0.05)
    return abused.neighbour.done - before


def test_a_crowd_that_dribbles_and_peers_that_never_read_hinder_nobody(
    abused: Abused, door: Door
) -> None:
    """`bench abuse` has the figures; here a client that works now and then goes on as before."""
    submitted = {"tasks": [{"type": "echo", "data": {"x": "x" * 100}}] * 1000}
    abused.http.post("/api/tasks/submit_batch", submitted)  # listed at length
    linked, quiet = connections_of(abused), _done_within(abused, 3.0)
    job = AbuseJob(
        url=abused.mesh.url,
        endpoint=f"tcp://127.0.0.1:{door.port}",
        server_key=door.server_key.hex(),
        mesh=door.mesh,
        dribbling=300,
        deaf=50,
    )
    broker = abused.node("_broker")
    before = broker.rss_bytes()
    with abusers_beside(job):
        _done_within(abused, 3.0)
        beside = _done_within(abused, 3.0)
        assert broker.rss_bytes() - before < MOST_GROWTH_BYTES
    assert beside > quiet / 2
    assert connections_of(abused) == linked
    told = abused.rejected()
    assert told["broker", SILENT] >= 100
