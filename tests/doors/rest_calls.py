"""The REST application over a real broker, in one process, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from werkzeug.test import Client as HttpClient
from werkzeug.test import TestResponse

from d8mesh.doors.rest.api import Api
from d8mesh.doors.rest.mesh import Places
from d8mesh.doors.tunnel import Exchange
from d8mesh.nodes.client import Client
from tests.nodes.mesh import PATIENCE_S, Mesh

HOST = "127.0.0.1:7001"


class Rest:
    """Calls the application as a peer on loopback does."""

    def __init__(self, mesh: Mesh, port: int, stack: ExitStack) -> None:
        self.mesh, self.port = mesh, port
        self.client: Client = mesh.client(port)
        assert self.client.wait_connected(PATIENCE_S)
        self.waits = Places(300)
        exchange = Exchange(f"tcp://127.0.0.1:{port}", self.waits)
        stack.callback(exchange.close)
        self.api = Api(mesh.config(), self.client, exchange=exchange, waits=self.waits)
        self.http = HttpClient(self.api)

    def call(self, method: str, path: str, /, **more: Any) -> TestResponse:
        environ = {"REMOTE_ADDR": "127.0.0.1", **more.pop("environ", {})}
        headers = {"Host": HOST, **more.pop("headers", {})}
        return self.http.open(
            path, method=method, environ_overrides=environ, headers=headers, **more
        )

    def get(self, path: str, /, **more: Any) -> TestResponse:
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any = None, /, **more: Any) -> TestResponse:
        if body is not None:
            more["json"] = body
        return self.call("POST", path, **more)

    def submit(self, kind: str = "nobody_runs_this", /, **more: Any) -> str:
        """Submit one task and return its id."""
        answer = self.post("/api/tasks/submit", {"type": kind, "data": {}, **more})
        assert answer.status_code == 201, answer.text
        assert answer.json is not None
        return str(answer.json["task_id"])

    def register(self, worker_id: str, *types: str, **capabilities: Any) -> None:
        body = {"worker_id": worker_id, "worker_type": "test", "capabilities": capabilities}
        if types:
            capabilities["task_types"] = list(types)
        answer = self.post("/api/workers/register", body)
        assert answer.status_code == 200, answer.text

    def counts(self) -> dict[str, int]:
        """Return how many tasks there are, by status."""
        stats = self.get("/api/stats").json
        assert stats is not None
        return dict(stats["tasks"])


@contextmanager
def rest_in(folder: Path) -> Iterator[Rest]:
    with ExitStack() as stack:
        mesh = Mesh(folder, stack)
        yield Rest(mesh, mesh.broker(), stack)
