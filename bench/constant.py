"""The bare HTTP server to compare REST with: d8mesh's own, Werkzeug's routing, and a constant.

Run as a process of its own: ``python -m bench.constant PORT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final
from urllib.request import ProxyHandler, build_opener

from bench.raw_loop import HOME, python
from d8mesh.apps.demo import free_ports
from d8mesh.edge.network import bind
from d8mesh.errors import D8Error
from d8mesh.http.answers import Response
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.routes import Door, HttpRoute, Request
from d8mesh.http.server import Server

START_S: Final = 30.0
CONSTANT: Final = b'{"task_id":"0123456789abcdef-0","status":"submitted"}'


async def constant(request: Request) -> Response:
    """Answer a constant, whatever came."""
    return Response(CONSTANT, 201)


async def serve(port: int) -> None:
    """Serve until killed."""
    guard, rejections = Guard(), Rejections()
    routes = [
        HttpRoute(rule="/", call=constant),
        HttpRoute(rule="/constant", call=constant, method="POST"),
    ]
    application = Application([Door(routes=routes)], guard, rejections)
    server = Server(application, [bind("127.0.0.1", port)], guard.admits, rejections)
    await server.start()
    await asyncio.Event().wait()


@contextlib.contextmanager
def serving(module: str, *arguments: object) -> Iterator[str]:
    """Run a server of the bench that takes a port last; yield its URL."""
    (port,) = free_ports(1)
    process = subprocess.Popen(python(module, *arguments, port), cwd=HOME)
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url)
        yield url
    finally:
        process.kill()
        process.wait()


def _await(url: str) -> None:
    until = time.monotonic() + START_S
    opener = build_opener(ProxyHandler({}))
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            opener.open(url, timeout=1).close()
            return
        time.sleep(0.01)
    raise D8Error(f"the server at {url} did not come up within {START_S:.0f} s")


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
