"""The REST application over a real broker, in one process, for tests."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.doors.rest.api import rest_door
from d8mesh.doors.rest.members import join_door
from d8mesh.doors.tunnel import Exchange, tunnel_door
from d8mesh.doors.waiting import MAX_WAITS, Places
from d8mesh.http.access import KnownTokens
from d8mesh.http.application import Application
from d8mesh.http.asgi import AsgiMessage
from d8mesh.http.guard import Guard, Rejections
from d8mesh.nodes.client.aio.node import AsyncNode
from tests.http.calls import Answer, LoopThread, call, scope_of
from tests.http.tokens import token_of
from tests.nodes.mesh import PATIENCE_S, Mesh

#: What opens all that asks always.
BOSS: Final = {"Authorization": "Bearer boss"}
#: Longer than any wait of a call.
CALL_S = 90.0


class Rest:
    """Calls the application as a peer on loopback does."""

    client: AsyncNode
    exchange: Exchange
    application: Application

    def __init__(self, mesh: Mesh, port: int, stack: ExitStack) -> None:
        self.mesh, self.port = mesh, port
        self.loop = LoopThread()
        stack.callback(self.loop.close)
        self.waits, self.rejections = Places(MAX_WAITS), Rejections()
        self.loop.run(self._begin())
        stack.callback(lambda: self.loop.run(self._end()))

    async def _begin(self) -> None:
        endpoint = self.mesh.endpoint(self.port)
        self.client = AsyncNode(self.mesh.config(), endpoint=endpoint, url=None)
        self.exchange = Exchange(endpoint)
        tokens = KnownTokens([token_of("boss", TokenScope.ADMIN)])
        doors = [
            rest_door(self.client, self.waits, self.rejections),
            join_door(self.client, self.waits),
            tunnel_door(self.exchange),
        ]
        self.application = Application(doors, Guard(tokens=tokens), self.rejections)

    async def _end(self) -> None:
        await self.exchange.close()
        await self.client.close(1.0)

    def call(
        self,
        method: str,
        path: str,
        body: Any = b"",
        /,
        *,
        peer: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        calling = call(self.application, method, path, peer=peer, headers=headers, body=body)
        return self.loop.run(calling, CALL_S)

    def get(self, path: str, /, **more: Any) -> Answer:
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any = b"", /, **more: Any) -> Answer:
        return self.call("POST", path, body, **more)

    def open(self, path: str, method: str = "GET", /, **more: Any) -> Opened:
        """Ask, without waiting for the end of the answer."""
        return Opened(self, method, path, **more)

    def submit(self, kind: str = "nobody_runs_this", /, **more: Any) -> str:
        """Submit one task and return its id."""
        answer = self.post("/api/tasks/submit", {"type": kind, "data": {}, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json["task_id"])

    def register(self, worker_id: str, *types: str, **capabilities: Any) -> None:
        body = {"worker_id": worker_id, "worker_type": "test", "capabilities": capabilities}
        if types:
            capabilities["task_types"] = list(types)
        answer = self.post("/api/workers/register", body)
        assert answer.status_code == 200, answer.text

    def counts(self) -> dict[str, int]:
        """Return how many tasks there are, by status."""
        return dict(self.get("/api/stats").json["tasks"])


class Opened:
    """A call whose answer comes in parts, and whose caller may leave."""

    def __init__(self, rest: Rest, method: str, path: str, **more: Any) -> None:
        self._told: queue.SimpleQueue[AsgiMessage | None] = queue.SimpleQueue()
        scope = scope_of(method, path, **more)
        calling = self._call(rest.application, scope, more.get("body", b""))
        self._call_of = asyncio.run_coroutine_threadsafe(calling, rest.loop.loop)
        self._start: AsgiMessage | None = None

    @property
    def status_code(self) -> int:
        """The status; waits for it."""
        if self._start is None:
            self._start = self._told.get(timeout=PATIENCE_S)
            assert self._start is not None, self._call_of.result()
        return int(self._start["status"])

    @property
    def headers(self) -> dict[str, str]:
        assert self.status_code
        assert self._start is not None
        return {name.decode(): value.decode() for name, value in self._start["headers"]}

    def __iter__(self) -> Iterator[str]:
        """Yield what comes in, to the end."""
        assert self.status_code
        while (message := self._told.get(timeout=PATIENCE_S)) is not None:
            yield message.get("body", b"").decode()

    def leave(self) -> None:
        """Hang up, as the server tells the call."""
        self._call_of.cancel()
        while self._told.get(timeout=PATIENCE_S) is not None:
            pass

    async def _call(self, application: Application, scope: Any, body: bytes) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> AsgiMessage:
            return messages.pop()

        async def send(message: AsgiMessage) -> None:
            self._told.put(message)

        try:
            await application(scope, receive, send)
        finally:
            self._told.put(None)


@contextmanager
def rest_in(folder: Path) -> Iterator[Rest]:
    with ExitStack() as stack:
        mesh = Mesh(folder, stack)
        rest = Rest(mesh, mesh.broker(), stack)
        assert rest.loop.run(rest.client.wait_connected(PATIENCE_S), CALL_S)
        yield rest
