"""The test of the gate: it sees a door that stands open, and one that opens to nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport import router, self_test
from d8mesh.edge.transport.keys import new_pair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.self_test import prove_gate
from d8mesh.edge.transport.zap import ZAP_DOMAIN, Gate, ZapHandler
from d8mesh.errors import D8Error
from tests.keyed import SERVER, admit

Context = zmq.Context[zmq.Socket[bytes]]


@contextlib.contextmanager
def a_context() -> Iterator[Context]:
    context: Context = zmq.Context()
    try:
        yield context
    finally:
        context.term()


def router_in(context: Context, *, secret: bytes | None = SERVER.secret) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    if secret is not None:
        router.curve_server = True
        router.curve_secretkey = secret
    return router


def test_a_gate_that_holds_passes_and_is_as_it_was() -> None:
    with a_context() as context:
        handler = ZapHandler(context, admit)
        prove_gate(lambda: router_in(context), handler, SERVER.public)
        assert handler.gate is admit


def test_a_door_without_a_handler_is_noticed() -> None:
    with a_context() as context, a_context() as another:
        handler = ZapHandler(another, admit)
        with pytest.raises(D8Error, match="a key that is refused was not refused"):
            prove_gate(lambda: router_in(context), handler, SERVER.public)


def test_a_handler_that_lets_everybody_in_is_noticed() -> None:
    class Careless(ZapHandler):
        @property
        def gate(self) -> Gate:
            return admit

        @gate.setter
        def gate(self, gate: Gate) -> None:
            del gate

    with a_context() as context:
        handler = Careless(context, admit)
        with pytest.raises(D8Error, match="Anybody could join"):
            prove_gate(lambda: router_in(context), handler, SERVER.public)


@pytest.mark.parametrize("secret", [None, new_pair().secret], ids=["no encryption", "another key"])
def test_a_door_that_opens_to_nobody_is_noticed(
    monkeypatch: pytest.MonkeyPatch, secret: bytes | None
) -> None:
    monkeypatch.setattr(self_test, "SELF_TEST_S", 1.0)
    with a_context() as context:
        handler = ZapHandler(context, lambda address, key: Verdict.REFUSED)
        with pytest.raises(D8Error, match="Nobody could join"):
            prove_gate(lambda: router_in(context, secret=secret), handler, SERVER.public)


def test_where_the_gate_does_not_hold_nothing_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "SELF_TEST_S", 1.0)
    monkeypatch.setattr(router, "_guarded", lambda context, keys: router_in(context, secret=None))
    with pytest.raises(D8Error, match="the test of the gate failed"):
        RouterEndpoint("127.0.0.1", [0], keys=SERVER, gate=admit)


class SlowToSpeak(zmq.Socket[bytes]):
    """Says nothing before its connection has ended."""

    def connect(self, addr: str) -> Any:
        connected = super().connect(addr)
        assert self.get_monitor_socket(zmq.EVENT_DISCONNECTED).poll(20_000)
        return connected


def test_who_is_refused_before_it_has_spoken_does_not_hold_the_start_up() -> None:
    endpoint = RouterEndpoint("127.0.0.1", [0], keys=SERVER, gate=admit)
    with contextlib.closing(endpoint), a_context() as context:
        dealer = SlowToSpeak(context, zmq.DEALER)
        dealer.sndtimeo = 20_000
        where = f"tcp://127.0.0.1:{endpoint.port}"
        monitor = self_test._knock(dealer, where, b"late", new_pair().public, new_pair())
        assert monitor.poll(0)
        monitor.close(0)
        dealer.close(0)
