"""Bytes that come in without a message, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from d8mesh.edge.transport import byte_guard
from d8mesh.edge.transport.byte_guard import (
    SLOW_BYTES,
    UNFINISHED,
    UNREAD,
    UNREAD_S,
    ByteGuard,
    TcpConnection,
)
from d8mesh.edge.transport.traffic import traffic_of
from tests.edge.transport.pairs import tcp_pair

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only there the system tells at once what it has received"
)
MB = 1_000_000


@dataclass
class Watched:
    """A connection, its other end, and a guard that looks at it by a clock of ours."""

    connection: TcpConnection
    theirs: socket.socket
    guard: ByteGuard = field(default_factory=ByteGuard)
    now: float = 0.0
    round: float = 0.0

    def pour(self, size: int) -> None:
        """Send so much, and read it at this end, as ZeroMQ's thread does."""
        handle = self.connection.handle
        assert handle is not None
        while size > 0:
            self.theirs.sendall(bytes(min(size, 65_536)))
            got = min(size, 65_536)
            size -= got
            while got > 0:
                got -= len(handle.recv(got))

    def watch(self) -> None:
        """Have it watched whether messages come out."""
        self.pour(3 * MB)
        assert self.look() == []
        assert self.connection.routing_id in self.guard.watched

    def look(self, *, passed_s: float = 0.1, rounds: float = 2.0) -> list[str]:
        """Let time pass and the loop go round; return why the connection has to end."""
        self.now += passed_s
        self.round += rounds
        told = self.guard.look([self.connection], self.now, self.round)
        assert all(each is self.connection for each, _ in told)
        return [code for _, code in told]


@contextlib.contextmanager
def watched(routing_id: bytes | None = b"r") -> Iterator[Watched]:
    with tcp_pair() as (ours, theirs):
        yield Watched(TcpConnection(ours, "127.0.0.1", 0.0, 0.0, routing_id), theirs)


def test_a_message_without_end_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5 * MB)
    with watched() as it:
        it.watch()
        it.pour(6 * MB)
        assert [it.look(), it.look()] == [[], [UNFINISHED]]


def test_what_came_in_before_anybody_watched_may_have_come_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5 * MB)
    with watched() as it:
        it.pour(20 * MB)
        assert [it.look() for _ in range(5)] == [[]] * 5
        assert it.connection.unfinished_bytes == 0
        assert not it.guard.is_alert


def test_before_the_first_message_less_is_enough() -> None:
    with watched(routing_id=None) as it:
        it.pour(5 * MB)
        assert [it.look(), it.look()] == [[], [UNFINISHED]]


def test_as_long_as_messages_come_out_any_amount_may_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5 * MB)
    with watched() as it:
        for _ in range(5):
            it.pour(6 * MB)
            assert it.look() == []
            it.guard.hear({b"r", b"another"})
        assert it.look() == []
        assert not it.guard.watched


def test_a_loop_that_stands_still_is_no_fault_of_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5 * MB)
    with watched() as it:
        it.watch()
        it.pour(6 * MB)
        for _ in range(5):
            assert it.look(rounds=0) == []
        it.guard.hear({b"r"})
        assert it.look() == []


def test_messages_of_others_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_BYTES", 5 * MB)
    with watched() as it:
        it.watch()
        it.pour(6 * MB)
        it.look()
        it.guard.hear({b"another"})
        assert it.look() == [UNFINISHED]


def test_little_is_not_even_watched() -> None:
    with watched() as it:
        it.pour(MB)
        assert it.look() == []
        assert not it.guard.is_alert
        assert not it.guard.watched


def test_of_many_that_hold_too_much_together_the_largest_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(byte_guard, "MAX_UNFINISHED_IN_ALL_BYTES", 8 * MB)
    guard = ByteGuard()
    with watched(b"a") as a, watched(b"b") as b, watched(b"c") as c:
        connections = [each.connection for each in (a, b, c)]
        for each in (a, b, c):
            each.pour(3 * MB)
        assert guard.look(connections, 0.1, 2.0) == []
        for each, size in ((a, 3), (b, 4), (c, 3)):
            each.pour(size * MB)
        assert guard.look(connections, 0.2, 4.0) == []
        assert guard.look(connections, 0.3, 6.0) == [(b.connection, UNFINISHED)]


def fill(it: Watched) -> None:
    """Send until the system takes no more."""
    handle = it.connection.handle
    assert handle is not None
    handle.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            handle.send(bytes(65_536))


def test_a_peer_that_takes_nothing_may_be_sent_little_more_and_is_cut_off_in_the_end() -> None:
    with watched() as it:
        fill(it)
        assert it.look() == []
        assert it.guard.takes(b"r", 10 * MB)
        assert it.look() == []
        assert it.guard.takes(b"another", 10 * MB)
        assert it.guard.takes(b"r", SLOW_BYTES)
        assert not it.guard.takes(b"r", 1)
        assert it.look(passed_s=UNREAD_S - 1) == []
        assert it.look(passed_s=1.5) == [UNREAD]


def test_a_peer_that_reads_again_may_be_sent_anything_again() -> None:
    with watched() as it:
        fill(it)
        it.look()
        it.look(passed_s=UNREAD_S - 1)
        assert it.guard.slow
        assert it.connection.handle is not None
        while (told := traffic_of(it.connection.handle)) and told.unsent_bytes:
            it.theirs.recv(65_536)
        assert it.look(passed_s=UNREAD_S) == []
        assert not it.guard.slow


def test_a_connection_that_has_ended_is_forgotten() -> None:
    with watched() as it:
        it.pour(3 * MB)
        fill(it)
        it.look()
        it.look()
        assert it.guard.watched
        assert it.guard.slow
        it.guard.forget(it.connection)
        assert not it.guard.watched
        assert not it.guard.slow


def test_a_connection_that_ends_while_it_is_sent_something_is_forgotten_too() -> None:
    """The loop has just looked at what it may be sent when the other thread learns of the end."""

    class EndsAtOnce(dict[bytes, Any]):
        def get(self, key: bytes, default: Any = None) -> Any:
            found = super().get(key, default)
            it.guard.forget(it.connection)
            return found

    with watched() as it:
        fill(it)
        it.look()
        it.look()
        it.guard.slow = EndsAtOnce(it.guard.slow)
        assert it.guard.takes(b"r", 1)
        assert not it.guard.slow
        assert not it.guard.is_alert
