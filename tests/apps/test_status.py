"""The status command, against a real mesh and against nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import threading

import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.status import ask, look, run
from d8mesh.config import Config


def test_a_mesh_is_found_by_mdns_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    with mesh(workers=1) as running:
        (other,) = free_ports(1)
        config = Config(mesh=running.config.mesh, interfaces=("127.0.0.1",), web_port=other)
        assert run(config, argparse.Namespace(json=True)) == 0
        told = json.loads(capsys.readouterr().out)
        (orchestrator,) = told["orchestrators"]
        assert orchestrator["url"] == running.url
        assert orchestrator["health"]["status"] == "healthy"
        assert [worker["status"] for worker in orchestrator["workers"]] == ["online"]
        assert run(config, argparse.Namespace(json=False)) == 0
        shown = capsys.readouterr().out
        assert "healthy" in shown
        assert "0 pending" in shown
        another = Config(mesh="another", interfaces=("127.0.0.1",), web_port=other)
        assert look(another) == []
        named = dataclasses.replace(another, orchestrator_url=running.url)
        assert run(named, argparse.Namespace(json=False)) == 1
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{running.url} is of mesh '{config.mesh}', not 'another' (D8_MESH)" in shown


def test_without_an_orchestrator_it_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (nowhere,) = free_ports(1)
    config = Config(mesh="nobody", interfaces=("127.0.0.1",), web_port=nowhere)
    assert run(config, argparse.Namespace(json=False)) == 1
    assert "start_d8.py orchestrator" in " ".join(capsys.readouterr().out.split())


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
