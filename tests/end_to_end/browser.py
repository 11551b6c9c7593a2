"""A real browser without a window, and servers of web pages that it is sent to, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

#: A page with all its attempts takes 15 s; a loaded machine takes many times that.
PAGE_S: Final = 200.0
SCRIPT: Final = (Path(__file__).parent / "web_pages" / "attempts.js").read_text("utf-8")
#: Where a page reports, and where pages lie.
REPORT: Final = "/report"
PAGES: Final = "/page/"
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Nothing is asked of anybody but the servers of the test: no name service, no updates.
_SWITCHES: Final = (
    "--headless",
    "--no-sandbox",  # which root, as on CI, cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pings",
    # The browser's own guard, which asks people, is not what is tested; nor casting, by multicast.
    "--disable-features=LocalNetworkAccessChecks,MediaRouter,DialMediaRouteProvider",
)


def browser_path() -> str:
    """Return the browser's program; without one the test is skipped, but not on CI."""
    if str(sys.platform) == "win32":
        pytest.skip("the browser's processes are ended as a group, of POSIX")
    for name in _NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium: .ci/run installs it")
    pytest.skip("no Chromium on the PATH: apt-get install chromium")


class Pages:
    """Serves web pages on loopback, and hears what they report.

    Attributes:
        port: where, by whatever name the browser is told.
        reports: what the pages told, as they came.
    """

    def __init__(self) -> None:
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._pages: dict[str, str] = {}
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._tell(pages._pages.get(self.path, "").encode())

            def do_POST(self) -> None:
                told = self.rfile.read(int(self.headers["Content-Length"]))
                self._tell(b"")
                if self.path == REPORT:
                    pages.reports.put(json.loads(told))

            def _tell(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages")
        self._thread.start()

    def add(self, name: str, html: str) -> str:
        """Have a page; return its path."""
        self._pages[PAGES + name] = html
        return PAGES + name

    def add_attempts(self, name: str, plan: Mapping[str, Any], *, head: str = "") -> str:
        """Have a page that makes the attempts of a plan (`attempts.js`); return its path."""
        told = {**plan, "report": f"http://127.0.0.1:{self.port}{REPORT}"}
        made = json.dumps(told).replace("<", "\\u003c")
        script = f"<script>{SCRIPT}\nmain({made});</script>"
        return self.add(name, f"<!doctype html><head>{head}</head><body>{script}</body>")

    def report(self) -> dict[str, Any]:
        """Return what the next page tells."""
        try:
            return self.reports.get(timeout=PAGE_S)
        except queue.Empty:
            pytest.fail(f"the page told nothing within {PAGE_S:.0f} s")

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Rebinding:
    """A host that serves its page itself and is another one from then on, as rebound DNS makes it.

    The browser sees one origin; what it asks for there reaches `port`.
    """

    def __init__(self, page: str, port: int) -> None:
        self._page, self._target = page.encode(), ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="rebinding")]
        self._threads[0].start()

    def close(self) -> None:
        """Serve no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                self._open.add(caller)
                self._run(self._serve, caller)

    def _run(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name="rebinding")
        self._threads.append(thread)
        thread.start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            head = caller.recv(65_536)
            if head.startswith(b"GET " + PAGES.encode()):
                kind = b"Content-Type: text/html\r\nConnection: close\r\n"
                size = b"Content-Length: %d\r\n\r\n" % len(self._page)
                caller.sendall(b"HTTP/1.1 200 OK\r\n" + kind + size + self._page)
            elif head:
                with socket.create_connection(self._target) as target:
                    self._open.add(target)
                    target.sendall(head)
                    self._run(_copy, target, caller)
                    _copy(caller, target)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def browsing(path: str, url: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Have the browser at a page until the end of the `with`; `names` are of this machine."""
    rules = [f"MAP {name} 127.0.0.1" for name in names]
    rules += ["MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"]
    with tempfile.TemporaryDirectory(prefix="d8-browser-", ignore_cleanup_errors=True) as folder:
        settings = (f"--user-data-dir={folder}", f"--host-resolver-rules={', '.join(rules)}")
        started = subprocess.Popen(
            [path, *_SWITCHES, *settings, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
