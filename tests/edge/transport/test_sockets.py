"""ZeroMQ on loopback: links, frames both ways, wake-ups."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from d8mesh.edge.transport import socket_options
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import DealerLink, Loop, SharedContext, Waker
from d8mesh.errors import BrokerUnavailableError
from tests import keyed
from tests.edge.transport.linked import (
    PATIENCE_S,
    free_port,
    link_to,
    receive,
    receive_back,
    router_at,
    until,
)
from tests.keyed import SERVER


@pytest.fixture
def router() -> Iterator[RouterEndpoint]:
    with router_at(free_port()) as endpoint:
        yield endpoint


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


# -------------------------------------------------------------- links without a broker


def test_sending_with_nobody_there_does_not_wait() -> None:
    link = keyed.link_to(free_port())
    taken = sum(link.send(b"x") for _ in range(2 * socket_options.SEND_QUEUE_MESSAGES))
    assert 0 < taken < 2 * socket_options.SEND_QUEUE_MESSAGES
    assert link.receive(10) == []
    begun = time.monotonic()
    link.close()
    assert time.monotonic() - begun < 5


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
