"""A route in, a link out: over ZeroMQ, encrypted for one key, or over HTTP."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
import zmq
from zmq.utils import z85

from d8mesh.core.protocol.membership import link_pass
from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import SharedContext
from d8mesh.edge.transport.web_client import WebAccess
from d8mesh.errors import BrokerUnavailableError
from tests.keyed import PEER, route_to, router_at
from tests.nodes.mesh import PATIENCE_S, free_port, until

PATIENCE_MS = int(PATIENCE_S * 1000)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_route_of_zeromq_gives_a_link_that_speaks_with_the_broker(is_shared: bool) -> None:
    router = router_at()
    shared = SharedContext() if is_shared else None
    link = Connector(shared=shared, keys=PEER).connect(route_to(router.port))
    try:
        assert not link.is_tunnelled
        assert link.send(b"hello")
        assert router.socket.poll(PATIENCE_MS)
        ((peer, frame),) = router.receive(1)
        assert (peer.key, frame) == (PEER.public, b"hello")
        router.send(peer.routing_id, b"welcome")
        assert link.await_frame(PATIENCE_S) == b"welcome"
    finally:
        link.close()
        router.close()
        if shared is not None:
            shared.term()


def test_a_route_of_http_gives_a_link_through_the_rest_port() -> None:
    link = Connector(keys=PEER).connect(Route(f"http://127.0.0.1:{free_port()}", "b", PEER.public))
    try:
        assert link.is_tunnelled
    finally:
        link.close()


def test_a_token_is_shown_only_where_a_person_sent_us_and_a_link_pass_everywhere() -> None:
    shown: list[str | None] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(PATIENCE_S)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    secret, token, fields = b"s" * 32, "d8_token", dict[str, str]()
    with server:
        for access, is_given in (
            (WebAccess(token=token), True),
            (WebAccess(token=token), False),
            (WebAccess(secret=secret, token=token), True),
        ):
            connector = Connector(keys=PEER, access=access)
            link = connector.connect(Route(url, "b", PEER.public, is_given=is_given))
            near, _ = server.accept()
            with near, closing(link):
                near.settimeout(PATIENCE_S)
                head = near.makefile("rb")
                fields = dict(
                    line.strip().decode().lower().split(": ", 1)
                    for line in iter(head.readline, b"\r\n")
                    if b": " in line
                )
                shown.append(fields.get("authorization"))
    of_link = link_pass(secret, fields["x-d8-link"])
    assert shown == [f"bearer {token}", None, f"bearer {of_link}"]


def test_only_the_broker_that_has_its_secret_is_spoken_to() -> None:
    public, secret = zmq.curve_keypair()
    raw = z85.decode(public)
    other = z85.decode(zmq.curve_keypair()[0])
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.curve_secretkey, router.curve_publickey, router.curve_server = secret, public, True
        port = router.bind_to_random_port("tcp://127.0.0.1")
        monitor = router.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        connector = Connector(keys=PEER)
        wrong = connector.connect(Route(f"tcp://127.0.0.1:{port}", "b", other))
        right = connector.connect(Route(f"tcp://127.0.0.1:{port}", "b", raw))
        try:
            wrong.send(b"secret")
            assert monitor.poll(PATIENCE_MS)
            right.send(b"hello")
            assert router.recv_multipart()[1] == b"hello"
            until(lambda: not wrong.has_input and not router.poll(0))
        finally:
            wrong.close()
            right.close()
            router.disable_monitor()
            monitor.close(0)


def test_where_no_link_can_lead_is_said() -> None:
    with pytest.raises(BrokerUnavailableError, match="cannot connect to tcp://nonsense"):
        Connector(keys=PEER).connect(Route("tcp://nonsense", "b", PEER.public))


def test_an_orchestrator_whose_key_is_unknown_is_not_connected_to() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"public key .* is not known.*server_key"):
        Connector(keys=PEER).connect(Route("tcp://127.0.0.1:7010"))
