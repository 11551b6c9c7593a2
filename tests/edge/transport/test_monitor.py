"""What ZeroMQ tells of its connections, and that a socket is that of the one that is meant."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
import zmq

from d8mesh.edge.transport import monitor, sockets
from d8mesh.edge.transport.descriptors import duplicate
from d8mesh.edge.transport.monitor import TOLD_EVENTS, Monitor, MonitorEvent
from tests.security.raw_zmtp import RawZmtp

PATIENCE_S = 20.0
PATIENCE_MS = 20_000


class Watched:
    """A ROUTER without encryption, and what is told of it."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self.monitor = Monitor(self._context, self._router)
        self.port = self._router.bind_to_random_port("tcp://127.0.0.1")

    def await_told(self) -> None:
        assert self.monitor.socket.poll(PATIENCE_MS)

    def read(self, kind: int) -> MonitorEvent:
        """Return the next that is told of this kind; others are passed over."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.monitor.socket.poll(100)
            for each in self.monitor.read()[0]:
                if each.kind == kind:
                    return each
        raise AssertionError(kind)

    def close(self) -> None:
        self.monitor.close()
        self._router.close(0)
        self._context.term()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def test_the_event_that_ends_the_process_is_not_asked_for() -> None:
    """See `monitor.TOLD_EVENTS`; a link asks for events of its own."""
    for events in (TOLD_EVENTS, sockets._HANDSHAKE_FAILED):
        assert not events & zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


def test_who_is_there_is_told_with_its_socket_and_address(watched: Watched) -> None:
    with RawZmtp(watched.port) as peer:
        told = watched.read(zmq.EVENT_ACCEPTED)
        assert told.handle is not None
        with told.handle:
            assert told.address == "127.0.0.1"
            assert told.handle.getpeername() == peer.socket.getsockname()
            assert told.handle.fileno() != told.descriptor
    assert watched.read(zmq.EVENT_DISCONNECTED).descriptor == told.descriptor
    assert watched.monitor.read() == ([], True)


def test_who_has_come_and_left_is_told_without_a_socket_though_another_is_there(
    watched: Watched,
) -> None:
    with RawZmtp(watched.port) as peer:
        watched.await_told()
        peer.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        peer.socket.close()
    time.sleep(0.2)  # the next one has the same descriptor, mostly
    with RawZmtp(watched.port) as other:
        time.sleep(0.2)
        told, is_all = watched.monitor.read()
        assert is_all
        first, second = (each for each in told if each.kind == zmq.EVENT_ACCEPTED)
        assert first.handle is None
        assert second.handle is not None
        with second.handle:
            assert second.handle.getpeername() == other.socket.getsockname()


def test_a_socket_that_may_be_anothers_is_let_go(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between what was told and the duplicate, and the next one has its descriptor."""
    made: list[socket.socket | None] = []
    stack = contextlib.ExitStack()
    peer = RawZmtp(watched.port)
    watched.await_told()

    def late(descriptor: int) -> tuple[socket.socket | None, str]:
        peer.close()
        time.sleep(0.3)
        stack.enter_context(RawZmtp(watched.port))
        time.sleep(0.3)
        made.append(duplicate(descriptor)[0])
        return made[-1], "127.0.0.1"

    monkeypatch.setattr(monitor, "duplicate", late)
    with stack:
        ((told, *_), _) = watched.monitor.read()
        assert watched.monitor.is_ahead
        assert (told.kind, told.handle) == (zmq.EVENT_ACCEPTED, None)
        for each in made:
            assert each is None or each.fileno() == -1, "closed"
        monkeypatch.setattr(monitor, "duplicate", duplicate)
        later = watched.read(zmq.EVENT_ACCEPTED)
        assert later.handle is not None
        later.handle.close()


def test_of_ever_more_a_part_is_read_at_a_time(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MAX_EVENTS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(RawZmtp(watched.port))
        time.sleep(0.3)
        read: list[int] = []
        is_all = False
        while not is_all:
            told, is_all = watched.monitor.read()
            read.append(len(told))
            for each in told:
                assert each.handle is not None
                each.handle.close()
    assert read == [3, 5]
    assert not watched.monitor.is_ahead
