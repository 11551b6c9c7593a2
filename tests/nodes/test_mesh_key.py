"""A mesh with a key: every session shows that it knows it, and asks for the same in return."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.errors import MeshKeyError
from d8mesh.nodes.client import Client
from d8mesh.nodes.client.aio.client import AsyncClient
from d8mesh.nodes.worker import Worker
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in

KEY = "what-only-this-mesh-knows-4711"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def keyed(mesh: Mesh, key: str | None = KEY) -> Config:
    return replace(mesh.config(interface="no-mdns"), mesh_key=key)


def echoing(mesh: Mesh, port: int) -> Worker:
    worker = Worker(mesh.endpoint(port), config=keyed(mesh), slots=2)
    worker.register("echo", lambda data: data)
    return worker


def test_every_kind_of_session_proves_the_mesh_key(mesh: Mesh) -> None:
    port = mesh.broker(mesh_key=KEY)
    mesh.run(echoing(mesh, port))
    with Client(endpoint=mesh.endpoint(port), config=keyed(mesh)) as client:
        assert client.submit("echo", {"n": 1}).result(PATIENCE_S)["output"] == {"n": 1}
        for n in range(3):  # by a direct call, on a connection of its own
            assert client.call("echo", {"n": n}, timeout=PATIENCE_S)["output"] == {"n": n}
        assert client.node.direct_calls._count

    async def ask() -> object:
        async with AsyncClient(endpoint=mesh.endpoint(port), config=keyed(mesh)) as client:
            return await (await client.submit("echo", {"n": 2})).result(PATIENCE_S)

    assert asyncio.run(ask())["output"] == {"n": 2}  # type: ignore[index]


def test_an_orchestrator_that_does_not_know_the_mesh_key_is_told_nothing(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = echoing(mesh, port)
    worker.start()
    mesh.at_end(lambda: worker.stop(drain_s=0.0))
    client = Client(endpoint=mesh.endpoint(port), config=keyed(mesh))
    mesh.at_end(client.node._end)
    client.submit("echo", {"n": 1})
    assert not client.wait_connected(2.0)
    assert not worker.wait_joined(0.5)
    friend = mesh.client(port)
    assert friend.ask("health", {}, timeout=PATIENCE_S)["tasks_pending"] == 0


@pytest.mark.parametrize("shown", [None, "another-key-of-another-mesh-1"])
def test_who_does_not_know_the_mesh_key_is_refused(mesh: Mesh, shown: str | None) -> None:
    port = mesh.broker(mesh_key=KEY)
    client = Client(endpoint=mesh.endpoint(port), config=keyed(mesh, shown))
    mesh.at_end(client.node._end)
    with pytest.raises(MeshKeyError, match="this mesh has a D8_MESH_KEY"):
        client.submit("echo", {"n": 1}).result(PATIENCE_S)
    with Client(endpoint=mesh.endpoint(port), config=keyed(mesh)) as friend:
        assert friend.ask("health", {}, timeout=PATIENCE_S)["tasks_pending"] == 0
