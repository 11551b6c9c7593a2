"""A route in, a link out: over ZeroMQ, encrypted for one key, or over HTTP."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import SharedContext
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
