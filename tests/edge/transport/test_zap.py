"""Who connects is asked about before a frame of it is read, by address and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.sockets import RouterEndpoint
from tests.keyed import PEER, SERVER, admit, link_to, router_at
from tests.nodes.mesh import PATIENCE_S

PATIENCE_MS = int(PATIENCE_S * 1000)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def watched(stack: ExitStack, router: RouterEndpoint, events: int) -> zmq.Socket[bytes]:
    """Return what tells of these events of a router."""
    monitor: zmq.Socket[bytes] = router.socket.get_monitor_socket(events)
    stack.callback(router.close)
    stack.callback(monitor.close, 0)
    stack.callback(router.socket.disable_monitor)
    return monitor


@pytest.mark.parametrize("verdict", [Verdict.WAITING, Verdict.REFUSED])
def test_who_is_not_admitted_is_refused_with_the_status_of_its_verdict(
    stack: ExitStack, verdict: Verdict
) -> None:
    asked: list[tuple[str, bytes]] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append((address, key))
        return verdict

    router = router_at(gate=gate)
    monitor = watched(stack, router, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    link = link_to(router.port)
    stack.callback(link.close)
    link.send(b"hello")
    assert monitor.poll(PATIENCE_MS)
    told, _ = monitor.recv_multipart()
    assert int.from_bytes(told[2:6], "little") == int(verdict.value)
    assert router.receive(9) == []
    assert set(asked) == {("127.0.0.1", PEER.public)}


def test_who_knows_another_key_of_ours_or_speaks_in_clear_is_not_even_asked_about(
    stack: ExitStack,
) -> None:
    asked: list[bytes] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append(key)
        return admit(address, key)

    router = router_at(gate=gate)
    monitor = watched(stack, router, zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    wrong = link_to(router.port, server_key=PEER.public)
    stack.callback(wrong.close)
    wrong.send(b"wrong")
    assert monitor.poll(PATIENCE_MS)
    context = stack.enter_context(zmq.Context())
    plain = stack.enter_context(context.socket(zmq.DEALER))
    plain.linger = 0
    plain.connect(f"tcp://127.0.0.1:{router.port}")
    plain.send(b"in clear")
    told = plain.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)
    stack.callback(told.close, 0)
    assert told.poll(PATIENCE_MS)
    link = link_to(router.port)
    stack.callback(link.close)
    link.send(b"hello")
    assert router.socket.poll(PATIENCE_MS)
    assert [frame for _, frame in router.receive(9)] == [b"hello"]
    assert asked == [PEER.public]


def test_without_keys_only_who_has_none_is_let_in(stack: ExitStack) -> None:
    """For measurements alone: a ROUTER in clear, whose gate is asked all the same."""
    asked: list[tuple[str, bytes]] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append((address, key))
        return admit(address, key)

    router = RouterEndpoint("127.0.0.1", [0], keys=None, gate=gate)
    stack.callback(router.close)
    link = link_to(router.port, server_key=SERVER.public)
    stack.callback(link.close)
    link.send(b"hello")
    context = stack.enter_context(zmq.Context())
    plain = stack.enter_context(context.socket(zmq.DEALER))
    plain.linger = 0
    plain.connect(f"tcp://127.0.0.1:{router.port}")
    plain.send(b"in clear")
    assert router.socket.poll(PATIENCE_MS)
    ((peer, frame),) = router.receive(9)
    assert (peer.key, frame) == (None, b"in clear")
    assert asked == [("127.0.0.1", b"")]
