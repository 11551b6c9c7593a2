"""The orchestrators of the mesh are found, and asked, by who they are and how they answer."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import Any

import pytest

from bench.mesh import mesh
from d8mesh.apps import orchestrators
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import PassedOver, as_shown_at, ask, look, reasons_of
from d8mesh.apps.status import failure
from d8mesh.config import Config


def test_one_of_another_mesh_is_not_among_them_and_is_told_of() -> None:
    with mesh(workers=0) as running:
        (other,) = free_ports(1)
        own = Config(mesh=running.config.mesh, interfaces=("127.0.0.1",), web_port=other)
        (found,) = look(own)
        assert found.url == running.url
        told: list[PassedOver] = []
        named = replace(own, mesh="another", orchestrator_url=running.url)
        assert look(named, told.append) == []
        (stranger,) = told
    assert stranger.code == "access.mesh"
    assert running.config.mesh in stranger.why


def test_what_is_no_json_is_an_error_of_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="did not answer with JSON"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}", "/health")
        thread.join()


def test_an_orchestrator_that_tells_only_its_health_is_listed_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health = {"mesh": "here", "broker_id": "b", "status": "healthy"}

    def half(url: str, path: str, **more: Any) -> Any:
        return health if path == "/health" else {}

    monkeypatch.setattr(orchestrators, "ask", half)
    monkeypatch.setattr(orchestrators, "_heard", lambda *_: [])
    (found,) = look(Config(mesh="here"))
    assert (found.health, found.workers, found.problem) == (health, [], "'workers'")


def test_a_closed_orchestrator_is_shown_a_token_only_where_a_person_named_it() -> None:
    named = "https://10.0.0.1:7001"
    config = Config(token="a-token-of-8", orchestrator_url=named, tls_trust=("ab" * 32,))
    assert as_shown_at(named, {"ab" * 32}, config) == config
    heard = as_shown_at("https://10.0.0.2:7001", {"ab" * 32, "cd" * 32}, config)
    assert heard.token is None
    assert heard.tls_trust == ("ab" * 32, "cd" * 32)


def test_what_two_roads_say_of_one_orchestrator_is_said_once() -> None:
    why = "b at 10.0.0.1 port 7010 has another key"
    closed = PassedOver(f"http://10.0.0.1:7001 is closed to this machine: {why}", "access.key")
    other = PassedOver("http://10.0.0.2:7001 is of mesh 'x', not 'y' (D8_MESH)", "access.mesh")
    passed_over = [closed, PassedOver(why, "access.key"), other, other]
    assert reasons_of(passed_over) == [closed.why, other.why]
    assert failure(Config(), passed_over)["error"] == f"{closed.why}; {other.why}"
