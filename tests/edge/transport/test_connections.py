"""The connections of a ROUTER: which end, why, and how that is counted."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport import byte_guard, connections
from d8mesh.edge.transport.byte_guard import TcpConnection
from d8mesh.edge.transport.connections import (
    CROWD,
    FRAME,
    HANDSHAKE,
    SILENT,
    UNHEARD,
    Caps,
)
from d8mesh.edge.transport.keys import new_pair
from d8mesh.edge.transport.monitor import MonitorEvent
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import Loop, Waker
from tests.end_to_end.processes import until
from tests.keyed import SERVER, admit, link_to
from tests.security.raw_zmtp import MORE, RawZmtp, frame, greeting, needs_sodium

#: A handshake is over within this, the rest is a busy machine's.
CLOSED_S = 3.0


class Door:
    """A ROUTER in a loop of its own, which says everything back."""

    def __init__(self, caps: Caps | None = None) -> None:
        self.verdict, self.is_deaf = Verdict.ADMITTED, False
        self.peers: list[Peer] = []
        self.heard: list[bytes | None] = []
        self.rejected: Counter[str] = Counter()
        self._waker = Waker()
        self.router = RouterEndpoint(
            "127.0.0.1",
            [0],
            keys=SERVER,
            gate=lambda address, key: self.verdict,
            wake=self._waker.wake,
        )
        if caps is not None:
            self.router._connections._caps = caps
        self.port, self._is_over = self.router.port, False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        loop = Loop(self._waker, self.router)
        while not self._is_over:
            loop.wait(1.0)
            for peer, content in self.router.receive(100):
                self.peers.append(peer)
                self.heard.append(content)
                if content is not None and not self.is_deaf:
                    self.router.send(peer.routing_id, content)
            while self.router.rejections:
                self.rejected[self.router.rejections.popleft().code] += 1

    def drop(self, peer: Peer) -> None:
        self.router.drop(peer)

    def wake(self) -> None:
        """Let the loop go round once more."""
        self._waker.wake()

    def table(self) -> list[TcpConnection]:
        """Return the connections that there are."""
        return list(self.router._connections._table.values())

    def knock(self, said: bytes) -> RawZmtp:
        """Connect, and say this."""
        made = RawZmtp(self.port)
        made.socket.sendall(said)
        return made

    def visit(self) -> RawZmtp:
        """Connect as a peer should, and exchange a message."""
        made = RawZmtp(self.port).shake_hands(SERVER.public)
        made.send(b"hello")
        assert made.receive() == b"hello"
        return made

    def saw(self, code: str) -> None:
        """See that this was counted, once, and nothing else."""
        until(lambda: self.rejected, f"{code} is counted")
        assert self.rejected == {code: 1}

    def goes_on(self) -> None:
        """See that others are served."""
        link = link_to(self.port)
        try:
            link.send(b"fine")
            assert link.await_frame(20.0) == b"fine"
        finally:
            link.close()

    def close(self) -> None:
        self._is_over = True
        self._waker.wake()
        self._thread.join()
        self.router.close()
        self._waker.close()


def send_until_cut(odd: RawZmtp, flags: int = 0) -> None:
    """Send frames until the connection is closed; a peer that is forgotten would wait."""
    try:
        while True:
            odd.send(bytes(100_000), flags)
    except (BrokenPipeError, ConnectionResetError):
        pass


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


@pytest.fixture
def small_door() -> Iterator[Door]:
    made = Door(Caps(in_all=40, per_address=30, unheard_per_address=5))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HANDSHAKE),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), HANDSHAKE),
        (b"\x01\x00\x04\x00abc", HANDSHAKE),
        (b"\xff" + bytes(7) + b"\x01\x7f\x01\x05\x00\x00", HANDSHAKE),
        (greeting("NULL") + frame(4, b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"), HANDSHAKE),
        (greeting("PLAIN"), HANDSHAKE),
        (greeting("CURVE") + frame(4, b"\x05HELLO" + bytes(194)), HANDSHAKE),
        (greeting("CURVE") + frame(4, bytes(100_000)), HANDSHAKE),
        (greeting("CURVE") + frame(4, b"\x05HELLO"), HANDSHAKE),
        (b"", SILENT),
        (greeting("CURVE")[:12], SILENT),
        (greeting("CURVE"), SILENT),
    ],
)
def test_what_is_no_handshake_ends_within_three_seconds_and_is_counted_once(
    door: Door, said: bytes, code: str
) -> None:
    with door.knock(said) as odd:
        assert odd.ends_within(CLOSED_S)
        door.saw(code)
    door.goes_on()
    assert door.rejected == {code: 1}


def test_a_key_that_is_not_the_orchestrators_is_no_handshake(door: Door) -> None:
    link = link_to(door.port, server_key=new_pair().public)
    link.send(b"x")
    until(lambda: door.rejected[HANDSHAKE], "it is counted")
    link.close()
    assert door.heard == []


@needs_sodium
@pytest.mark.parametrize("has_spoken", [False, True])
@pytest.mark.parametrize(
    "said",
    [b"\x02" + struct.pack(">Q", 1 << 40), frame(0, b"\x07MESSAGE" + bytes(40)), b"\x40\x01x"],
    ids=["too large", "not sealed", "no frame"],
)
def test_a_frame_that_is_none_ends_its_connection_and_is_counted_once(
    door: Door, said: bytes, has_spoken: bool
) -> None:
    with door.visit() if has_spoken else RawZmtp(door.port).shake_hands(SERVER.public) as odd:
        until(lambda: door.router._connections._table, "it is known")
        odd.socket.sendall(said)
        assert odd.ends_within(CLOSED_S)
        until(lambda: door.rejected, "it is counted")
    door.goes_on()
    assert sum(door.rejected.values()) == 1
    assert not has_spoken or door.rejected == {FRAME: 1}


def test_the_largest_frame_is_none_too_large(door: Door) -> None:
    link = link_to(door.port)
    content = bytes(MAX_FRAME_BYTES)
    link.send(content)
    assert link.await_frame(60.0) == content
    link.close()
    door.goes_on()
    assert door.rejected == {}


def test_who_says_much_at_once_and_then_nothing_is_not_cut_off(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, is_due = door.router._connections.guard, threading.Event()
    look = guard.look
    monkeypatch.setattr(guard, "look", lambda *seen: look(*seen) if is_due.is_set() else [])
    door.is_deaf = True
    link = link_to(door.port)
    link.send(b"hello")
    until(lambda: door.router._connections._by_routing_id, "it is known")
    for _ in range(4):
        link.send(bytes(20_000_000))
    until(lambda: len(door.heard) == 5, "all has come out")
    is_due.set()
    looks = {connection.looked_at for connection in door.table()}
    while len(looks) < 6:
        looks |= {connection.looked_at for connection in door.table()}
        assert door.rejected == {}
        door.wake()
        time.sleep(0.05)
    link.send(b"still here")
    until(lambda: len(door.heard) == 6, "that, too")
    assert len(set(door.peers)) == 1
    link.close()
    assert door.rejected == {}


@needs_sodium
def test_who_leaves_is_not_counted(door: Door) -> None:
    RawZmtp(door.port).close()
    door.knock(greeting("CURVE")).close()
    RawZmtp(door.port).shake_hands(SERVER.public).close()
    door.visit().close()
    until(lambda: not door.router._connections._table, "all have left")
    door.goes_on()
    assert door.rejected == {}


@contextlib.contextmanager
def _behind(door: Door) -> Iterator[None]:
    """Let the thread that is told of connections be late."""
    monitor, go_on = door.router._connections._monitor, threading.Event()
    read = monitor.read

    def late() -> tuple[list[MonitorEvent], bool]:
        assert go_on.wait(20)
        return read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "read", late)
        try:
            yield
        finally:
            go_on.set()


@needs_sodium
def test_what_has_ended_before_it_was_looked_at_is_told_from_who_came_after_it(door: Door) -> None:
    with RawZmtp(door.port).shake_hands(SERVER.public) as quiet:
        until(lambda: door.router._connections._finished == 1, "its handshake is known")
        with _behind(door):
            with door.knock(b"GET / HTTP/1.1\r\n\r\n") as odd:
                assert odd.ends_within(CLOSED_S)
            second = RawZmtp(door.port)  # the descriptor is given again
        door.saw(HANDSHAKE)
        for each in (quiet, second.shake_hands(SERVER.public)):
            each.send(b"hello")
            assert each.receive() == b"hello"
    second.close()
    assert door.rejected == {HANDSHAKE: 1}


@needs_sodium
def test_nobody_gets_through_a_handshake_whom_the_table_has_not(door: Door) -> None:
    with ThreadPoolExecutor(1) as pool:
        with _behind(door):
            coming = pool.submit(door.visit)
            time.sleep(0.3)
            assert not coming.done()
            assert not door.heard
        with coming.result(20) as come:
            known = door.router._connections._by_routing_id
            until(lambda: known.keys() == {door.peers[0].routing_id}, "it is known")
            come.send(b"still here")
            assert come.receive() == b"still here"
    assert door.rejected == {}


def test_visits_of_a_moment_are_counted_as_nothing(door: Door) -> None:
    """Descriptors are given again while the thread and the loop are at other visits."""

    def visit(_: int) -> None:
        for _ in range(60):
            door.visit().close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(visit, range(6)))
    until(lambda: not door.router._connections._table, "all have left")
    door.goes_on()
    until(lambda: not door.router._connections._table, "that one, too")
    assert door.rejected == {}
    assert door.router._connections._finished == 0


@needs_sodium
def test_whom_the_gate_refuses_the_gate_counts(door: Door) -> None:
    door.verdict = Verdict.WAITING
    with RawZmtp(door.port) as odd, pytest.raises(AssertionError, match="ERROR"):
        odd.shake_hands(SERVER.public)
    until(lambda: not door.router._connections._table, "it has ended")
    door.verdict = Verdict.ADMITTED
    with door.knock(b"GET / HTTP/1.1\r\n\r\n") as odd:
        assert odd.ends_within(CLOSED_S)
        door.saw(HANDSHAKE)


@needs_sodium
def test_who_shakes_hands_and_says_nothing_is_cut_off(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNHEARD_S", 0.5)
    with RawZmtp(door.port).shake_hands(SERVER.public) as mute, door.visit() as other:
        assert mute.ends_within(20)
        door.saw(UNHEARD)
        other.send(b"still here")
        assert other.receive() == b"still here"
    until(lambda: not door.router._connections._table, "all have left")
    assert door.router._connections._finished == 0


@needs_sodium
def test_of_those_who_said_nothing_yet_an_address_has_a_few(small_door: Door) -> None:
    with small_door.visit() as before:
        silent = [RawZmtp(small_door.port) for _ in range(20)]
        until(lambda: small_door.rejected[CROWD] == 15, "15 of 20 are refused at once")
        assert sum(each.ends_within(0.01) for each in silent) == 15
        before.send(b"unhindered")
        assert before.receive() == b"unhindered"
        for each in silent:
            each.close()
        until(lambda: len(small_door.router._connections._table) == 1, "they have left")
        small_door.goes_on()
    assert small_door.rejected == {CROWD: 15}


@needs_sodium
def test_connections_have_an_end_and_the_newest_are_beyond_it(small_door: Door) -> None:
    guests = [small_door.visit() for _ in range(30)]
    with RawZmtp(small_door.port) as late:
        assert late.ends_within(CLOSED_S)
        small_door.saw(CROWD)
    for each in guests:
        each.send(b"still here")
        assert each.receive() == b"still here"
    guests.pop().close()
    until(lambda: len(small_door.router._connections._table) == 29, "one has left")
    small_door.goes_on()
    for each in guests:
        each.close()


@needs_sodium
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bytes are not counted")
@pytest.mark.parametrize("has_spoken", [False, True])
def test_a_message_of_ever_more_frames_ends_its_connection(
    door: Door, monkeypatch: pytest.MonkeyPatch, has_spoken: bool
) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5_000_000)
    with door.visit() if has_spoken else RawZmtp(door.port).shake_hands(SERVER.public) as odd:
        send_until_cut(odd, MORE)
        door.saw("zmq.unfinished")
    door.goes_on()
    assert all(each is not None for each in door.heard)


@needs_sodium
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bytes are not counted")
def test_who_never_reads_is_cut_off_and_little_waits_for_it(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_guard, "UNREAD_S", 1.0)
    with RawZmtp(door.port) as odd:
        odd.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        odd.shake_hands(SERVER.public)
        send_until_cut(odd)
        door.saw("zmq.unread")
    door.goes_on()


@needs_sodium
def test_a_peer_that_is_dropped_and_no_other_loses_its_connection(door: Door) -> None:
    with door.visit() as one, door.visit() as other:
        door.drop(door.peers[0])
        assert one.ends_within(CLOSED_S)
        other.send(b"still here")
        assert other.receive() == b"still here"
    until(lambda: not door.router._connections._table, "both have ended")
    door.drop(door.peers[0])  # gone already
    door.goes_on()
    assert door.rejected == {}


def test_descriptors_are_as_they_were_when_all_have_left(door: Door) -> None:
    own = Path("/proc/self/fd")
    if not own.is_dir():
        pytest.skip("this system does not list descriptors")

    def count() -> int:
        return len(list(own.iterdir()))

    door.goes_on()
    until(lambda: not door.router._connections._table, "it has left")
    before = count()
    for _ in range(50):
        door.knock(b"GET / HTTP/1.1\r\n\r\n").close()
    until(lambda: count() <= before, "all are closed")


def test_a_router_without_a_loop_can_be_closed() -> None:
    router = RouterEndpoint("127.0.0.1", [0], keys=SERVER, gate=admit)
    with RawZmtp(router.port):
        router.close()


def test_where_nobody_watches_the_connections_the_loop_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fall(now: float) -> None:
        raise RuntimeError("it fell")

    woken = threading.Event()
    router = RouterEndpoint("127.0.0.1", [0], keys=SERVER, gate=admit, wake=woken.set)
    monkeypatch.setattr(router._connections, "_step", fall)
    router.drop(Peer(b"nobody", "", None))
    assert woken.wait(CLOSED_S)
    with pytest.raises(RuntimeError, match="it fell"):
        router.receive(1)
    router.close()
