"""Calls an ASGI application without sockets."""

from __future__ import annotations

import asyncio
import json as json_module
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

from werkzeug.datastructures import Headers

from d8mesh.http.asgi import AsgiApplication, AsgiMessage, Scope

_T = TypeVar("_T")
HOST = "127.0.0.1:7001"
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application answered."""

    status_code: int
    headers: Headers
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8")

    @property
    def content_type(self) -> str:
        return self.headers["Content-Type"]

    @property
    def json(self) -> Any:
        return json_module.loads(self.data)


def scope_of(
    method: str,
    path: str,
    *,
    peer: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Scope:
    """Return a request as ASGI has it; see `call`."""
    sent = {"host": HOST}
    if body:
        sent["content-length"] = str(len(body))
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    plain, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(plain, errors="replace"),
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": (peer, 50_000),
        "server": None,
    }


async def call(
    application: AsgiApplication,
    method: str,
    path: str,
    *,
    peer: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    body: Any = b"",
) -> Answer:
    """Send one request, the body in one piece, and return the whole answer.

    Args:
        path: with its query.
        headers: beside Host, Content-Length and the Content-Type of JSON.
        body: what is not bytes is sent as JSON.
    """
    if not isinstance(body, bytes):
        body = json_module.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
    scope = scope_of(method, path, peer=peer, headers=headers, body=body)
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    told: list[AsgiMessage] = []

    async def receive() -> AsgiMessage:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the caller does not leave
        raise AssertionError

    async def send(message: AsgiMessage) -> None:
        told.append(message)

    await application(scope, receive, send)
    assert not told[-1].get("more_body", False)
    found = Headers(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in told[0]["headers"]]
    )
    content = b"".join(each.get("body", b"") for each in told[1:])
    return Answer(told[0]["status"], found, b"" if method == "HEAD" else content)


class LoopThread:
    """A loop in a thread, for tests that wait outside of it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T], timeout_s: float = PATIENCE_S) -> _T:
        """Run a coroutine there; return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        """Cancel what is left, and end."""
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_all() -> None:
    others = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
