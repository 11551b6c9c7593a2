"""An orchestrator that says something new of itself is looked for anew at once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from d8mesh.config import Config
from d8mesh.core.announcement import Kind, Sighting
from d8mesh.nodes.client.dial import Connection, Dialler
from d8mesh.nodes.worker.finder import Finder
from tests.nodes.mesh import until

HEARD = Sighting(
    kind=Kind.ORCHESTRATOR,
    node_id="orch-1",
    boot_id="boot",
    mesh="mesh",
    addresses=("127.0.0.1",),
    port=0,
    web_port=None,
    version="0.1.0",
)


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that accepts connections: all that is asked of an orchestrator here."""
    try:
        return socket.create_server((host, port))
    except OSError:
        pytest.skip(f"{host} is no address of this machine")


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_a_worker_asks_whether_it_has_moved_and_stays_if_it_has_not() -> None:
    old, new = listening(), listening()
    finder = Finder(url=None, places=(), wake=lambda: None)
    try:
        finder.sighted(replace(HEARD, port=port_of(old)))
        until(lambda: len(finder.links) == 1)
        finder.sighted(replace(HEARD, port=port_of(new)))  # it still accepts at the old one
        until(lambda: finder._pursuits["orch-1"]._doubted == "")
        old.close()
        finder.sighted(replace(HEARD, port=port_of(new)))  # nothing new
        finder.sighted(replace(HEARD, port=port_of(new), web_port=7001))
        until(lambda: len(finder.links) == 2)
        assert finder.links[1][2].endpoint == f"tcp://127.0.0.1:{port_of(new)}"
    finally:
        finder.close()
        old.close()
        new.close()


def test_a_client_goes_where_it_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Callable[[Sighting], None]] = []
    made: list[Connection] = []

    class Silent:
        def __init__(self, **given: object) -> None:
            told.append(given["on_sighting"])  # type: ignore[arg-type]

        def start(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr("d8mesh.nodes.client.dial.Discovery", Silent)
    old = listening()
    port = port_of(old)
    new = listening("127.0.0.2", port)
    dialler = Dialler(Config(), endpoint=None, url=None, wake=lambda: None)

    def links() -> int:
        link = dialler.take()
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
        dialler.close()
        for link in made:
            link.close()
        old.close()
        new.close()
