"""The connections of a ROUTER: which end, why, and how that is counted."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport import byte_guard, connections, sockets
from d8mesh.edge.transport.connections import (
    CROWD,
    FRAME,
    HANDSHAKE,
    SILENT,
    UNHEARD,
    Caps,
)
from d8mesh.edge.transport.keys import new_pair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import Loop, Waker
from d8mesh.edge.transport.traffic import has_left
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


@needs_sodium
def test_who_leaves_is_not_counted(door: Door) -> None:
    RawZmtp(door.port).close()
    door.knock(greeting("CURVE")).close()
    RawZmtp(door.port).shake_hands(SERVER.public).close()
    door.visit().close()
    until(lambda: not door.router._connections._table, "all have left")
    door.goes_on()
    assert door.rejected == {}


@needs_sodium
def test_what_has_ended_before_it_was_looked_at_has_not_made_the_handshake_of_another(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawZmtp(door.port).shake_hands(SERVER.public) as quiet:
        until(lambda: door.router._connections._finished == 1, "its handshake is known")
        monkeypatch.setattr(connections, "duplicate", lambda descriptor: (None, "127.0.0.1"))
        with door.knock(b"GET / HTTP/1.1\r\n\r\n") as odd:
            assert odd.ends_within(CLOSED_S)
            door.saw(HANDSHAKE)
        quiet.send(b"hello")
        assert quiet.receive() == b"hello"


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


@needs_sodium
@pytest.mark.skipif(sys.platform == "win32", reason="numbers of sockets are not told there")
def test_who_has_spoken_is_known_though_the_descriptor_was_that_of_one_before(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is behind: of both it hears when the second has spoken already."""
    monkeypatch.setattr(connections, "UNHEARD_S", 0.5)
    watched = door.router._connections
    is_behind, go_on, refusals = threading.Event(), threading.Event(), watched._refusals

    def wait() -> int:
        is_behind.set()
        assert go_on.wait(20)
        return refusals()

    silent, other = (RawZmtp(door.port).shake_hands(SERVER.public) for _ in range(2))
    until(lambda: len(watched._table) == 2, "both are there")
    monkeypatch.setattr(watched, "_refusals", wait)
    other.close()
    assert is_behind.wait(20)
    (place,) = watched._table
    silent.close()
    handle = watched._table[place].handle
    assert handle is not None
    until(lambda: has_left(handle), "it has left")
    with _all_taken(place):
        late = door.visit()
    go_on.set()
    try:
        until(lambda: watched._by_routing_id.keys() == {door.peers[0].routing_id}, "it is known")
        assert door.router.is_reading(door.peers[0].routing_id)
        assert list(watched._table) == [place], "the number was given again"
        assert not late.ends_within(2.0)
    finally:
        late.close()
    assert door.rejected == {}


@contextlib.contextmanager
def _all_taken(below: int) -> Iterator[None]:
    """Have all descriptors in use below one, but for one."""
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < below:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    os.close(taken.pop())
    if taken:
        os.close(taken.pop())
    try:
        yield
    finally:
        for each in taken:
            os.close(each)


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


def test_the_event_that_ends_the_process_is_not_asked_for() -> None:
    """See `connections._TOLD_EVENTS`; a link asks for events of its own."""
    for events in (connections._TOLD_EVENTS, sockets._HANDSHAKE_FAILED):
        assert not events & zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
