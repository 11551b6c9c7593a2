"""What the sockets of all nodes have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport.socket_options import COPIED_BYTES, NOBLOCK, configure, plain_send


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    one, other = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    try:
        for each in (one, other):
            configure(each)
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other
    finally:
        one.close(0)
        other.close(0)
        context.term()


def test_nothing_is_without_a_bound(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    one, _ = pair
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER, zmq.HANDSHAKE_IVL, zmq.HEARTBEAT_TIMEOUT):
        assert 0 < int(one.getsockopt(option)) < 60_000
    assert MAX_FRAME_BYTES < int(one.getsockopt(zmq.MAXMSGSIZE)) < MAX_FRAME_BYTES + 1000


@pytest.mark.parametrize("size", [0, 10, COPIED_BYTES, 10 * COPIED_BYTES])
def test_a_plain_send_is_a_send(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], size: int
) -> None:
    one, other = pair
    plain_send(one)(bytes(size), NOBLOCK, size < COPIED_BYTES)
    assert other.poll(20_000)
    assert other.recv() == bytes(size)
