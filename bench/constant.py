"""The bare HTTP server to compare REST with: d8mesh's own listener, Werkzeug, and a constant.

Run as a process of its own: ``python -m bench.constant PORT``.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.request import ProxyHandler, build_opener

from werkzeug.wrappers import Request, Response

from bench.raw_loop import HOME, python
from d8mesh.apps.demo import free_ports
from d8mesh.errors import D8Error

START_S: Final = 30.0
CONSTANT: Final = b'{"task_id":"0123456789abcdef-0","status":"submitted"}'


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Take the body in and answer a constant."""
    Request(environ).get_data()
    response = Response(CONSTANT, status=201, mimetype="application/json")
    return response(environ, start_response)


def serve(port: int) -> None:
    """Serve with the limits that REST has."""
    from d8mesh.edge.network import bind
    from d8mesh.http.server import Listener
    from d8mesh.processes.web_main import SWITCH_S, limits

    # A generator that is done resets its connections; that is no news here.
    logging.getLogger("waitress").setLevel(logging.CRITICAL + 1)
    sys.setswitchinterval(SWITCH_S)
    Listener(application, bind("127.0.0.1", port), limits(), lambda *_: None).run()


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
    serve(int(sys.argv[1]))
