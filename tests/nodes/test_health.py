"""What an orchestrator at a URL tells of itself, and to whom nothing of ours is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import BrokerUnavailableError
from d8mesh.nodes.reconnector.health import broker_at
from tests.keyed import SERVER
from tests.nodes.health_page import HealthPage, health_page
from tests.nodes.mesh import free_port

TOLD = {
    "broker_port": 7010,
    "broker_id": "b",
    "server_key": SERVER.public.hex(),
    "proof": "ab" * 32,
    "tls": "cd" * 32,
}


@pytest.fixture
def page() -> Iterator[tuple[str, int]]:
    with health_page() as made:
        yield made


def test_it_tells_where_its_broker_is_and_which_key_that_has(page: tuple[str, int]) -> None:
    HealthPage.body = json.dumps(TOLD).encode()
    assert broker_at(page[0]) == KnownBroker(
        "b", ("127.0.0.1",), 7010, page[1], SERVER.public, b"\xab" * 32, "cd" * 32
    )
    HealthPage.body = json.dumps({"broker_port": 7010, "server_key": "x", "proof": 5}).encode()
    assert broker_at(page[0]) == KnownBroker("", ("127.0.0.1",), 7010, page[1])


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"[" * 60_000, b'{"broker_port": "x"}', b'{"broker_port": 0}', b"{}"],
)
def test_what_is_no_orchestrator_is_said_so(body: bytes, page: tuple[str, int]) -> None:
    HealthPage.body = body
    with pytest.raises(BrokerUnavailableError, match="orchestrator"):
        broker_at(page[0])


REFUSAL = {"error": "this mesh is closed", "code": "access.token"}


def test_nothing_of_ours_is_shown_to_a_closed_one(page: tuple[str, int]) -> None:
    HealthPage.body = json.dumps(TOLD | REFUSAL).encode()
    assert broker_at(page[0]).server_key == SERVER.public
    HealthPage.body = json.dumps(REFUSAL).encode()
    with pytest.raises(BrokerUnavailableError, match="is closed, and does not tell yet"):
        broker_at(page[0])
    assert HealthPage.shown == [None, None]


def test_a_url_where_nobody_answers_or_can_is_said_so() -> None:
    for port in (free_port(), "nonsense", 2**40):
        with pytest.raises(BrokerUnavailableError, match="no orchestrator answers"):
            broker_at(f"http://127.0.0.1:{port}")
