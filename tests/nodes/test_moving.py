"""An orchestrator that says something new of itself is looked for anew at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.core.protocol.announcement import NodeKind, Sighting
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search
from d8mesh.nodes.worker.orchestrators import Orchestrators
from tests.keyed import PEER, SERVER
from tests.nodes.mesh import PATIENCE_S, mesh_in, until

HEARD = Sighting(
    kind=NodeKind.ORCHESTRATOR,
    node_id="orch-1",
    boot_id="boot",
    mesh="mesh",
    addresses=("127.0.0.1",),
    port=0,
    web_port=None,
    version="0.1.0",
    server_key=SERVER.public,
)


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that accepts connections: all that is asked of an orchestrator here."""
    try:
        return socket.create_server((host, port))
    except OSError:
        pytest.skip(f"{host} is no address of this machine")


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_a_worker_asks_whether_it_has_moved_and_stays_if_it_has_not(tmp_path: Path) -> None:
    old, new = listening(), listening()
    around = Orchestrators(Config(data_dir=str(tmp_path)), keys=PEER, wake=lambda: None)
    try:
        around.told(replace(HEARD, port=port_of(old)).broker)
        until(lambda: len(around.links) == 1)
        around.told(replace(HEARD, port=port_of(new)).broker)  # it still accepts at the old one
        until(lambda: not around._reconnectors["orch-1"]._is_doubted)
        old.close()
        around.told(replace(HEARD, port=port_of(new)).broker)  # nothing new
        around.told(replace(HEARD, port=port_of(new), web_port=7001).broker)
        until(lambda: len(around.links) == 2)
        assert around.links[1][2].endpoint == f"tcp://127.0.0.1:{port_of(new)}"
    finally:
        around.close()
        old.close()
        new.close()


def test_a_client_goes_where_it_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Callable[[Sighting], None]] = []
    made: list[DealerLink] = []

    class Silent:
        def __init__(self, **given: object) -> None:
            told.append(given["on_sighting"])  # type: ignore[arg-type]

        def start(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr("d8mesh.nodes.reconnector.search.Discovery", Silent)
    old = listening()
    port = port_of(old)
    new = listening("127.0.0.2", port)
    reconnector = Reconnector(Search(Config(data_dir=str(tmp_path))), Connector(keys=PEER))

    def links() -> int:
        link = reconnector.take()
        made.extend([] if link is None else [link])
        return len(made)

    try:
        until(lambda: told)
        told[0](replace(HEARD, port=port))
        until(lambda: links() == 1)
        old.close()
        told[0](replace(HEARD, port=port, addresses=("127.0.0.2",)))
        until(lambda: links() == 2)
    finally:
        reconnector.close()
        for link in made:
            link.close()
        old.close()
        new.close()


def test_where_an_orchestrator_was_is_left_alone_while_another_that_is_joined_answers_there(
    tmp_path: Path,
) -> None:
    with listening() as server:
        old = KnownBroker("orch-old", ("127.0.0.1",), port_of(server), None, SERVER.public)
        config = Config(data_dir=str(tmp_path))
        around = Orchestrators(config, known=[old], keys=PEER, wake=lambda: None)
        try:
            until(lambda: around.links)
            _, link, route = around.links.popleft()
            link.close()
            around.joined = {"orch-new": "orch-new"}
            around.leads_to(route.endpoint, "orch-new")
            assert around._reconnectors["orch-old"].search.find() is None
            around.joined = {}
            around.again("orch-old")
            until(lambda: around.links)
        finally:
            around.close()


def test_an_orchestrator_in_the_place_of_another_is_joined_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mesh_in(tmp_path) as mesh:
        port = mesh.broker("before")
        mesh.run(mesh.worker(port)).stop()  # where it was is remembered
        mesh.stop_broker(*mesh.brokers[0])
        mesh.broker("after", port=port)
        worker = mesh.worker(port)
        worker.register("nap", lambda data: time.sleep(0.05))
        mesh.run(worker)
        client = mesh.client(port)
        caplog.set_level("INFO", logger="d8mesh.worker")
        for _ in range(40):
            client.submit("nap", {}).result(PATIENCE_S)
        joins = [each for each in caplog.messages if each.startswith("worker.joined")]
        assert len(joins) <= 3
