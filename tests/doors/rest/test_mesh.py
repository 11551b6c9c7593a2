"""Waiting is bounded, and a broker that is away is waited for a short time."""

from __future__ import annotations

import pytest

from d8mesh.config import Config
from d8mesh.doors.rest import mesh
from d8mesh.doors.rest.mesh import Places, require_broker
from d8mesh.errors import BrokerUnavailableError
from d8mesh.nodes.client import Client


def test_places_are_as_many_as_said() -> None:
    places = Places(2)
    with places.one() as first, places.one() as second:
        assert (first, second) == (True, True)
        with places.one() as third:
            assert third is False
        assert places.take() is False
    assert places.take() is True
    places.give_back()


def test_a_broker_that_is_away_is_not_waited_for_without_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mesh, "AWAY_S", 0.2)
    places = Places(1)
    with Client(endpoint="tcp://127.0.0.1:1", config=Config(mesh="test-none")) as client:
        with pytest.raises(BrokerUnavailableError):
            require_broker(client, places)
        monkeypatch.setattr(mesh, "AWAY_S", 3600.0)
        with places.one(), pytest.raises(BrokerUnavailableError):
            require_broker(client, places)
