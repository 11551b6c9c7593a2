"""ZeroMQ on loopback: frames, limits, wake-ups, who is let in."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport import sockets
from d8mesh.edge.transport.sockets import DealerLink, Loop, RouterEndpoint, SharedContext, Waker
from d8mesh.edge.transport.zap import Gate
from d8mesh.errors import BrokerUnavailableError, D8Error
from tests import keyed
from tests.keyed import SERVER, admit

PATIENCE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def router_at(port: int, gate: Gate = admit) -> Iterator[RouterEndpoint]:
    endpoint = keyed.router_at(port, gate=gate)
    try:
        yield endpoint
    finally:
        endpoint.close()


@pytest.fixture
def router() -> Iterator[RouterEndpoint]:
    with router_at(free_port()) as endpoint:
        yield endpoint


@contextlib.contextmanager
def link_to(router: RouterEndpoint) -> Iterator[DealerLink]:
    link = keyed.link_to(router.port)
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def raw_to(router: RouterEndpoint) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER without any of our options but the keys."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
    dealer.curve_serverkey = keyed.SERVER.public
    dealer.connect(f"tcp://127.0.0.1:{router.port}")
    try:
        yield dealer
    finally:
        dealer.close(0)
        context.term()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Received = tuple[Peer, bytes | None]


def receive(router: RouterEndpoint, count: int) -> list[Received]:
    found: list[Received] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} came"
        found += router.receive(count - len(found))
        router.socket.poll(20)
    return found


def receive_back(link: DealerLink, count: int) -> list[bytes]:
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline
        link.socket.poll(20)
        found += link.receive(count - len(found))
    return found


# ------------------------------------------------------------------ frames both ways


def test_frames_go_both_ways_in_order_and_bring_address_and_key(
    router: RouterEndpoint,
) -> None:
    frames = [b"%d" % n for n in range(50)]
    with link_to(router) as link:
        assert all(link.send(frame) for frame in frames)
        received = receive(router, 50)
        assert [frame for _, frame in received] == frames
        (peer,) = {peer for peer, _ in received}
        assert (peer.address, peer.key) == ("127.0.0.1", keyed.PEER.public)
        assert all(router.send(peer.routing_id, frame) for frame in frames)
        assert receive_back(link, 50) == frames


def test_no_more_than_asked_for_is_taken(router: RouterEndpoint) -> None:
    with link_to(router) as link:
        for n in range(5):
            link.send(b"%d" % n)
        receive(router, 2)
        assert [frame for _, frame in receive(router, 3)] == [b"2", b"3", b"4"]
        assert router.receive(10) == []


def test_large_frames_pass_whole(router: RouterEndpoint) -> None:
    frame = bytes(range(256)) * 4096 * 8
    with link_to(router) as link:
        assert link.send(frame)
        (((routing_id, *_), received),) = receive(router, 1)
        assert received == frame
        assert router.send(routing_id, frame)
        assert receive_back(link, 1) == [frame]


def test_two_links_are_two_peers_and_may_share_threads(router: RouterEndpoint) -> None:
    shared = SharedContext()
    links = [keyed.link_to(router.port, shared=shared) for _ in range(2)]
    for link in links:
        link.send(b"hello")
    assert len({peer for peer, _ in receive(router, 2)}) == 2
    for link in links:
        link.close()
    shared.term()


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
            assert count < 20 * sockets.SEND_QUEUE_MESSAGES
        link.send(b"hello")
        (((routing_id, *_), _),) = receive(router, 1)
        assert router.send(routing_id, b"answer")
        assert receive_back(link, 1) == [b"answer"]


def test_sending_with_nobody_there_does_not_wait() -> None:
    link = keyed.link_to(free_port())
    taken = sum(link.send(b"x") for _ in range(2 * sockets.SEND_QUEUE_MESSAGES))
    assert 0 < taken < 2 * sockets.SEND_QUEUE_MESSAGES
    assert link.receive(10) == []
    begun = time.monotonic()
    link.close()
    assert time.monotonic() - begun < 5


def test_garbage_and_oversize_frames_cost_only_their_connection(router: RouterEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", router.port)) as tls:
        tls.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300)
        with raw_to(router) as dealer, link_to(router) as link:
            dealer.send(b"x" * (MAX_FRAME_BYTES + 1))
            link.send(b"fine")
            assert [frame for _, frame in receive(router, 1)] == [b"fine"]
            assert router.receive(10) == []


def test_a_silent_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_MS", 200)
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


def test_an_impossible_endpoint_is_said() -> None:
    with pytest.raises(BrokerUnavailableError, match="nonsense"):
        DealerLink("nonsense", server_key=SERVER.public, keys=keyed.PEER)


# ------------------------------------------------------------------------- waking up


def test_a_wake_ends_a_wait_once() -> None:
    waker = Waker()
    loop = Loop(waker)
    for _ in range(3):
        waker.wake()
    begun = time.monotonic()
    loop.wait(PATIENCE_S)
    assert time.monotonic() - begun < PATIENCE_S / 2
    begun = time.monotonic()
    loop.wait(0.05)
    assert time.monotonic() - begun >= 0.04
    waker.close()
    waker.wake()  # too late, and no error
    waker.close()


def test_another_thread_wakes_a_loop_for_each_of_its_words() -> None:
    waker = Waker()
    loop = Loop(waker)
    said: list[int] = []

    def talk() -> None:
        for n in range(2000):
            said.append(n)
            waker.wake()

    thread = threading.Thread(target=talk)
    thread.start()
    heard = 0
    deadline = time.monotonic() + PATIENCE_S
    while heard < 2000:
        assert time.monotonic() < deadline, "a wake-up was lost"
        begun, before = time.monotonic(), heard
        loop.wait(5.0)
        heard = len(said)
        assert heard > before or time.monotonic() - begun < 4.0
    thread.join()
    waker.close()


def test_a_loop_waits_for_what_it_was_given_only(router: RouterEndpoint) -> None:
    waker = Waker()
    loop = Loop(waker, router)
    with link_to(router) as link:
        link.send(b"hello")
        loop.wait(PATIENCE_S)
        (((routing_id, *_), _),) = router.receive(10)
        loop.add(link)
        router.send(routing_id, b"answer")
        while not link.socket.poll(0):
            loop.wait(PATIENCE_S)
        loop.remove(link)
        loop.remove(link)
        begun = time.monotonic()
        loop.wait(0.05)
        assert time.monotonic() - begun >= 0.04
    waker.close()


@pytest.mark.skipif(not hasattr(select, "poll"), reason="only sockets can be selected there")
def test_a_descriptor_tells_once_and_the_link_knows_what_is_left(router: RouterEndpoint) -> None:
    with link_to(router) as link:
        messages, _ = link.descriptors
        link.send(b"hello")
        (((peer, *_), _),) = receive(router, 1)
        until(lambda: not link.has_input)
        router.send(peer, b"one")
        assert _is_readable(messages, PATIENCE_S)
        link.send(b"more")  # this uses up what the descriptor told
        until(lambda: link.has_input)
        assert not _is_readable(messages, 0.0)
        assert link.receive(9) == [b"one"]
        assert not link.has_input


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def test_a_link_tells_that_it_was_cut_and_that_it_stands_again() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        waker = Waker()
        stack.callback(waker.close)
        with router_at(port) as router:
            link = stack.enter_context(link_to(router))
            loop = Loop(waker, link)
            link.send(b"hello")
            until(lambda: router.receive(1))

        def turns(is_so: Callable[[], bool]) -> bool:
            loop.wait(0.05)
            return is_so()

        until(lambda: turns(lambda: link.is_cut))
        assert not link.is_renewed
        with router_at(port) as router:
            until(lambda: turns(lambda: link.is_renewed))
            assert not link.is_cut
            loop.remove(link)
            link.send(b"again")
            until(lambda: router.receive(1))
