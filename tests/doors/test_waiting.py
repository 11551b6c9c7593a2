"""Waiting is bounded, and a broker that is away is waited for a short time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.core.broker.state import MAX_LOADS, MAX_LOADS_OF_CLIENT
from d8mesh.doors import waiting
from d8mesh.doors.rest.streams import MAX_STREAMS
from d8mesh.doors.waiting import Doorbell, Places, require_broker
from d8mesh.errors import BrokerUnavailableError, NodeClosedError
from d8mesh.nodes.client.aio.node import AsyncNode


def test_all_who_may_wait_may_ask_the_broker_at_the_same_moment() -> None:
    """They all ask as one client: what they wait for may end for all at once."""
    assert waiting.MAX_WAITS + MAX_STREAMS < MAX_LOADS_OF_CLIENT < MAX_LOADS


def test_places_are_as_many_as_said() -> None:
    places = Places(2)
    with places.one() as first, places.one() as second:
        assert (first, second, places.is_full) == (True, True, True)
        with places.one() as third:
            assert third is False
    with places.one() as first, places.one() as second:
        assert (first, second, places.is_full) == (True, True, True)


def test_a_bell_wakes_who_waits_and_nobody_later() -> None:
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        bell = Doorbell(loop)
        bell.ring()
        assert await bell.is_rung(0.01) is False
        loop.call_soon(bell.ring)
        assert await bell.is_rung(30.0) is True

    asyncio.run(wait())


def test_a_broker_that_is_away_is_not_waited_for_without_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        places = Places(1)
        config = Config(mesh="test-none", data_dir=str(tmp_path))
        node = AsyncNode(config, endpoint="tcp://127.0.0.1:1", url=None)
        monkeypatch.setattr(waiting, "AWAY_S", 0.2)
        with pytest.raises(BrokerUnavailableError):
            await require_broker(node, places)
        monkeypatch.setattr(waiting, "AWAY_S", 3600.0)
        with places.one(), pytest.raises(BrokerUnavailableError):
            await require_broker(node, places)
        await node.close(0.0)
        with pytest.raises(NodeClosedError):
            await require_broker(node, places)

    asyncio.run(ask())
