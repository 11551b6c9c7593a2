"""What the system tells of a connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from d8mesh.edge.transport.traffic import has_left, traffic_of
from tests.edge.transport.pairs import tcp_pair
from tests.end_to_end.processes import until

needs_traffic = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="this system tells nothing of a connection"
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with tcp_pair() as made:
        yield made


@needs_traffic
def test_what_has_come_in_is_counted_read_or_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    before = traffic_of(ours)
    theirs.sendall(b"x" * 1000)
    until(lambda: len(ours.recv(2000, socket.MSG_PEEK)) == 1000, "all came")
    ours.recv(400)
    after = traffic_of(ours)
    assert before is not None
    assert after is not None
    assert after.received_bytes - before.received_bytes == 1000
    assert after.quiet_ms < 10_000


@needs_traffic
def test_who_does_not_read_leaves_bytes_unsent(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += ours.send(bytes(65_536))
    stuck = traffic_of(ours)
    assert stuck is not None
    assert stuck.unsent_bytes > 0
    while sent > 0:
        sent -= len(theirs.recv(65_536))

    def is_through() -> bool:
        told = traffic_of(ours)
        assert told is not None
        return told.unsent_bytes == 0 and told.taken_bytes > stuck.taken_bytes

    until(is_through, "what was unsent has gone")


def test_nothing_is_told_of_what_is_no_connection() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as odd:
        assert traffic_of(odd) is None


def test_a_peer_that_is_there_has_not_left(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    assert not has_left(ours)
    theirs.sendall(b"x")
    until(lambda: traffic_of(ours) is None or ours.recv(1, socket.MSG_PEEK), "it came")
    assert not has_left(ours)


@pytest.mark.parametrize("is_rude", [False, True])
def test_a_peer_that_has_closed_has_left(
    pair: tuple[socket.socket, socket.socket], is_rude: bool
) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    if is_rude:  # it resets the connection
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    until(lambda: has_left(ours), "it is seen")
