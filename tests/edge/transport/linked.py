"""A ROUTER and links to it, over loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import zmq

from d8mesh.apps.demo import free_ports
from d8mesh.core.broker.effects import Peer
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.edge.transport.zap import Gate
from tests import keyed
from tests.keyed import admit

PATIENCE_S = 20.0


def free_port() -> int:
    return free_ports(1)[0]


@contextlib.contextmanager
def router_at(port: int, gate: Gate = admit) -> Iterator[RouterEndpoint]:
    endpoint = keyed.router_at(port, gate=gate)
    try:
        yield endpoint
    finally:
        endpoint.close()


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
