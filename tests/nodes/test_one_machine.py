"""Client and worker beside their orchestrator, on a machine that carries no multicast to itself."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.core.client import session
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file
from d8mesh.nodes.client import Client, runner
from d8mesh.nodes.worker import Worker
from tests.keyed import SERVER
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until

#: Where `Mesh.config` has its data folder, seen from where its brokers' journals lie.
ORCHESTRATOR = f"data/{address_file.FOLDER}"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        (tmp_path / ORCHESTRATOR).mkdir(parents=True)
        yield mesh


def deaf(mesh: Mesh) -> Client:
    return Client(config=mesh.config(interface="no-mdns"))


def deaf_worker(mesh: Mesh) -> Worker:
    worker = Worker(config=mesh.config(interface="no-mdns"), slots=1)
    worker.register("echo", lambda data: data)
    return mesh.run(worker)


def test_they_find_it_without_mdns_and_find_it_again(mesh: Mesh) -> None:
    mesh.broker(ORCHESTRATOR)
    deaf_worker(mesh)
    with deaf(mesh) as client:
        assert client.call("echo", {"n": 1}, timeout=PATIENCE_S)["output"] == {"n": 1}
        mesh.stop_broker(*mesh.brokers[-1])
        task = client.submit("echo", {"n": 2})
        mesh.broker(ORCHESTRATOR, port=free_port())  # at another port
        assert task.result(PATIENCE_S)["output"] == {"n": 2}


def test_they_may_be_there_first(mesh: Mesh) -> None:
    worker = Worker(config=mesh.config(interface="no-mdns"), slots=1)
    worker.register("echo", lambda data: data)
    worker.start()
    try:
        with deaf(mesh) as client:
            task = client.submit("echo", {"n": 1})
            mesh.broker(ORCHESTRATOR)
            assert task.result(PATIENCE_S)["output"] == {"n": 1}
    finally:
        worker.stop(drain_s=1.0)


def test_what_was_written_goes_with_a_clean_end_and_names_the_mesh(
    mesh: Mesh, tmp_path: Path
) -> None:
    port = mesh.broker(ORCHESTRATOR)
    until(lambda: address_file.read(tmp_path / "data", mesh.mesh))
    written = address_file.read(tmp_path / "data", mesh.mesh)
    assert written is not None
    assert (written.port, written.addresses[0]) == (port, "127.0.0.1")
    assert address_file.read(tmp_path / "data", "another") is None
    mesh.stop_broker(*mesh.brokers[-1])
    assert address_file.read(tmp_path / "data", mesh.mesh) is None


def write_address(folder: Path, stranger: socket.socket, mesh: Mesh) -> None:
    """Write down that an orchestrator is where a stranger listens."""
    port = stranger.getsockname()[1]
    old = KnownBroker("orch-gone", ("127.0.0.1",), port, None, SERVER.public)
    address_file.write(folder / ORCHESTRATOR, old, mesh.mesh)


@pytest.mark.skipif(sys.platform == "win32", reason="multicast on loopback")
def test_an_address_that_is_out_of_date_harms_nobody(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else listens there now, and takes every connection without a word."""
    monkeypatch.setattr(session, "OPENING_S", 2 * PATIENCE_S)  # who is heard ends it
    monkeypatch.setattr(runner, "CUT_S", 2 * PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        write_address(tmp_path, stranger, mesh)
        with Client(config=mesh.config()) as client:
            until(lambda: client.node.reconnector.search.unproven)
            mesh.broker(is_announced=True)  # and writes elsewhere
            assert client.wait_connected(PATIENCE_S)
            worker = mesh.worker(None)
            worker.register("echo", lambda data: data)
            mesh.run(worker)
            assert client.call("echo", {"n": 1}, timeout=PATIENCE_S)["output"] == {"n": 1}


def test_an_address_that_led_nowhere_is_left_alone_for_a_while(mesh: Mesh, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        write_address(tmp_path, stranger, mesh)
        client = deaf(mesh)
        reconnector = client.node.reconnector
        until(lambda: reconnector.search.unproven)
        reconnector.again(0.0)
        assert reconnector.search.unproven is None
        assert reconnector.search._by_file() is None
        client.close()
