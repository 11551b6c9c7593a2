"""The broker's ROUTER on loopback: limits, peers in trouble, ports, who is let in."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport import socket_options
from d8mesh.edge.transport.connections import ASKED_NAME
from d8mesh.edge.transport.keys import KeyPair, new_pair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.errors import D8Error
from tests import keyed
from tests.edge.transport.linked import (
    PATIENCE_S,
    free_port,
    link_to,
    raw_to,
    receive,
    receive_back,
    router_at,
    until,
)
from tests.keyed import SERVER, admit
from tests.security.raw_zmtp import RawZmtp, needs_sodium

Heard = tuple[RawZmtp, Peer]


@pytest.fixture
def router() -> Iterator[RouterEndpoint]:
    with router_at(free_port()) as endpoint:
        yield endpoint


@pytest.mark.parametrize("parts", [[b""], [b"", b""], [b"a", b"b"], [b"x"] * 200])
def test_messages_of_several_frames_are_told_apart(
    router: RouterEndpoint, parts: list[bytes]
) -> None:
    with raw_to(router) as dealer:
        dealer.send_multipart(parts)
        dealer.send(b"after")
        dealer.send_multipart(parts)  # now from a connection that is known
        dealer.send(b"end")
        told = b"" if len(parts) == 1 else None
        assert [frame for _, frame in receive(router, 4)] == [told, b"after", told, b"end"]


# ------------------------------------------------ names that peers ask for in the handshake


def named(router: RouterEndpoint, name: bytes, keys: KeyPair) -> RawZmtp:
    """Connect, and ask to be called so."""
    return RawZmtp(router.port).shake_hands(SERVER.public, keys, name=name)


def cut_off(router: RouterEndpoint, odd: RawZmtp) -> None:
    """See that this connection is ended and counted, and that nothing of it comes out."""
    until(lambda: bool(router.rejections) or router.receive(100) != [])
    assert [each.code for each in router.rejections] == [ASKED_NAME]
    assert odd.ends_within(PATIENCE_S)


@needs_sodium
@pytest.mark.parametrize("name", [b"worker", b"\0", b"\0\0\0\0\0\0", b"x" * 255])
def test_a_name_that_a_peer_asks_for_ends_its_connection(
    router: RouterEndpoint, name: bytes
) -> None:
    with named(router, name, new_pair()) as odd:
        odd.send(b"hello")
        cut_off(router, odd)


@needs_sodium
def test_the_name_of_a_connection_that_is_yet_to_come_ends_its_connection(
    router: RouterEndpoint,
) -> None:
    with link_to(router) as link:
        link.send(b"hello")
        ((peer, _),) = receive(router, 1)
        later = int.from_bytes(peer.routing_id[:5], "big") + 1000
        with named(router, later.to_bytes(5, "big"), new_pair()) as odd:
            odd.send(b"hello")
            until(lambda: router.receive(100) == [] and bool(router.rejections))
            assert [each.code for each in router.rejections] == [ASKED_NAME]
            assert odd.ends_within(PATIENCE_S)


@needs_sodium
def test_the_name_of_a_connection_that_has_left_is_nobody_elses(router: RouterEndpoint) -> None:
    with RawZmtp(router.port).shake_hands(SERVER.public, new_pair()) as victim:
        victim.send(b"hello")
        ((peer, _),) = receive(router, 1)
    until(lambda: not router.send(peer.routing_id, b"are you there?"))
    with contextlib.ExitStack() as stack:
        odds: list[RawZmtp] = []
        deadline = time.monotonic() + PATIENCE_S
        while not router.rejections:  # while ZeroMQ has not let go of the name, nothing is heard
            assert time.monotonic() < deadline
            odds.append(stack.enter_context(named(router, peer.routing_id[:5], new_pair())))
            odds[-1].send(b"it is me")
            router.socket.poll(200)
            assert router.receive(100) == []
            router.socket.poll(50)
        cut_off(router, odds[-1])
        assert not router.send(peer.routing_id, b"a secret")


@needs_sodium
def test_what_is_sent_to_who_has_left_reaches_nobody_who_takes_its_name(
    router: RouterEndpoint,
) -> None:
    with RawZmtp(router.port).shake_hands(SERVER.public, new_pair()) as victim:
        victim.send(b"hello")
        ((peer, _),) = receive(router, 1)
    for _ in range(20):  # while ZeroMQ has not let go of the name, it is not given
        with named(router, peer.routing_id[:5], new_pair()) as silent:
            silent.socket.settimeout(0.1)
            assert not router.send(peer.routing_id, b"a secret")
            with pytest.raises(TimeoutError):
                silent.receive()


@needs_sodium
def test_a_peer_that_is_dropped_though_it_has_left_takes_nobody_along(
    router: RouterEndpoint,
) -> None:
    """The loop is late: the descriptor is that of another one when it hears the first."""
    table = router._connections._table
    with RawZmtp(router.port).shake_hands(SERVER.public, new_pair()) as first:
        first.send(b"rubbish")
        until(lambda: len(table) == 1)
    until(lambda: not table)
    with RawZmtp(router.port).shake_hands(SERVER.public, new_pair()) as second:
        until(lambda: len(table) == 1)
        ((peer, _),) = receive(router, 1)
        router.drop(peer)
        assert not second.ends_within(0.5)
        assert not router.is_reading(peer.routing_id)
        second.send(b"hello")
        ((other, frame),) = receive(router, 1)
        assert (frame, other.key != peer.key) == (b"hello", True)
        assert router.send(other.routing_id, b"hello")


@needs_sodium
def test_what_a_peer_said_last_is_its_own_though_it_has_left(router: RouterEndpoint) -> None:
    with RawZmtp(router.port).shake_hands(SERVER.public, new_pair()) as peer:
        peer.send(b"hello")
        ((who, _),) = receive(router, 1)
        peer.send(b"last words")
    until(lambda: router._connections.has_ended(who.routing_id))
    assert receive(router, 1) == [(who, b"last words")]
    until(lambda: not router.send(who.routing_id, b"are you there?"))


# ------------------------------------------------------------------- peers in trouble


def test_a_peer_that_is_gone_or_unknown_is_no_error(router: RouterEndpoint) -> None:
    assert not router.send(b"nobody", b"x")
    with link_to(router) as link:
        link.send(b"hello")
        (((routing_id, *_), _),) = receive(router, 1)
    deadline = time.monotonic() + PATIENCE_S
    while router.send(routing_id, b"x"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_peer_that_never_reads_is_refused_more_and_hinders_nobody(
    router: RouterEndpoint,
) -> None:
    with raw_to(router) as dead, link_to(router) as link:
        dead.send(b"hello")
        (((stuck, *_), _),) = receive(router, 1)
        count = 0
        while router.send(stuck, b"x" * 60_000):
            count += 1
            assert count < 20 * socket_options.SEND_QUEUE_MESSAGES
        link.send(b"hello")
        (((routing_id, *_), _),) = receive(router, 1)
        assert router.send(routing_id, b"answer")
        assert receive_back(link, 1) == [b"answer"]


def test_garbage_and_oversize_frames_cost_only_their_connection(router: RouterEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", router.port)) as tls:
        tls.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300)
        with raw_to(router) as dealer, link_to(router) as link:
            dealer.send(b"x" * (MAX_FRAME_BYTES + 1))
            link.send(b"fine")
            assert [frame for _, frame in receive(router, 1)] == [b"fine"]
            assert router.receive(10) == []


def test_a_silent_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_options, "HANDSHAKE_MS", 200)
    with router_at(free_port()) as router:
        with socket.create_connection(("127.0.0.1", router.port)) as mute:
            mute.settimeout(PATIENCE_S)
            while mute.recv(1000):  # its greeting, then the end
                pass


def test_who_may_not_take_part_is_never_heard() -> None:
    asked: list[str] = []
    is_open = threading.Event()

    def gate(address: str, key: bytes) -> Verdict:
        assert key == keyed.PEER.public
        asked.append(address)
        return Verdict.ADMITTED if is_open.is_set() else Verdict.REFUSED

    with router_at(free_port(), gate) as router:
        for n in (1, 2):  # gone before the door opens: who is refused tries again
            before = len(asked)
            with link_to(router) as link:
                link.send(b"%d" % n)
                until(lambda before=before: len(asked) > before)  # type: ignore[misc]
        is_open.set()
        with link_to(router) as link:
            link.send(b"3")
            assert [frame for _, frame in receive(router, 1)] == [b"3"]
            assert router.receive(10) == []
    assert set(asked) == {"127.0.0.1"}


def test_an_admission_that_raises_refuses_and_goes_on() -> None:
    asked: list[str] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append(address)
        if len(asked) == 1:
            raise ValueError(address)
        return admit(address, key)

    with router_at(free_port(), gate) as router, link_to(router) as first:
        first.send(b"one")
        until(lambda: asked)
        with link_to(router) as second:
            second.send(b"two")
            assert [frame for _, frame in receive(router, 1)] == [b"two"]


# ------------------------------------------------------------------------------ ports


def test_the_first_free_port_is_taken_and_let_go_at_once() -> None:
    taken, free = free_port(), free_port()
    with router_at(taken):
        second = RouterEndpoint("127.0.0.1", [taken, free], keys=SERVER, gate=admit)
        assert second.port == free
        second.close()
    for _ in range(3):
        with router_at(taken) as again:
            assert again.port == taken


def test_no_free_port_is_said_with_the_ports_and_the_setting() -> None:
    port = free_port()
    with router_at(port), pytest.raises(D8Error, match=rf"{port}.*D8_BROKER_PORT"):
        RouterEndpoint("127.0.0.1", [port], keys=SERVER, gate=admit)
    with pytest.raises(D8Error, match="cannot listen"):
        RouterEndpoint("999.1.2.3", [port], keys=SERVER, gate=admit)


def test_the_first_free_port_is_taken_where_error_numbers_are_not_pythons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errno, "EADDRINUSE", 10048)  # as on Windows; libzmq's is another
    taken, free = free_port(), free_port()
    with router_at(taken):
        second = RouterEndpoint("127.0.0.1", [taken, free], keys=SERVER, gate=admit)
        assert second.port == free
        second.close()


def test_a_port_that_is_taken_unseen_is_passed_over() -> None:
    taken, free = free_port(), free_port()
    endpoint = RouterEndpoint(
        "*",
        [taken, free],
        keys=SERVER,
        gate=admit,
        is_taken=lambda host, port: (host, port) == ("*", taken),
    )
    assert endpoint.port == free
    endpoint.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not there")
def test_several_addresses_have_the_same_port_or_none_of_it() -> None:
    taken, free = free_port(), free_port()
    with socket.create_server(("127.0.0.2", taken)):
        endpoint = RouterEndpoint(
            ("127.0.0.1", "127.0.0.2"), [taken, free], keys=SERVER, gate=admit
        )
    assert endpoint.port == free
    for address in ("127.0.0.1", "127.0.0.2"):
        socket.create_connection((address, free), timeout=PATIENCE_S).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", free), timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while True:  # libzmq lets the half that it had go on a thread of its own
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", taken)) == errno.ECONNREFUSED:
                break
        assert time.monotonic() < deadline
    endpoint.close()


def test_all_interfaces_are_listened_on_and_loopback_reaches_it() -> None:
    endpoint = RouterEndpoint("*", [free_port()], keys=SERVER, gate=admit)
    try:
        with link_to(endpoint) as link:
            link.send(b"hello")
            ((peer, _),) = receive(endpoint, 1)
            assert peer.address == "127.0.0.1"
    finally:
        endpoint.close()


@needs_sodium
def test_a_peer_that_fills_its_queue_and_breaks_off_does_not_end_the_process() -> None:
    """libzmq 4.3.5 aborts at a heartbeat that is due on such a connection: the ROUTER has none."""
    code = f"""
import socket, struct, time
from d8mesh.edge.transport import socket_options
socket_options.HEARTBEAT_MS = 200
from tests.keyed import SERVER, router_at
from tests.security.raw_zmtp import RawZmtp
router = router_at()
peer = RawZmtp(router.port).shake_hands(SERVER.public)
peer.socket.settimeout(0.5)
try:
    while True:
        peer.send(bytes(5000))
except TimeoutError:  # nothing is read any more
    pass
peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
peer.close()
time.sleep(1.0)  # several heartbeats
print(len(router.receive({10 * socket_options.RECEIVE_QUEUE_MESSAGES})) > 500)
router.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
