"""The orchestrators that answer, and what is made of those that tell little or nonsense."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from d8mesh.apps import orchestrators
from d8mesh.apps.orchestrators import ask, look
from d8mesh.config import Config


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
