"""What an orchestrator's ``/health`` says, or anything else, at a port of loopback."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class HealthPage(http.server.BaseHTTPRequestHandler):
    """Answers with `body`; keeps what was shown."""

    body: bytes = b""
    shown: list[str | None]

    def do_GET(self) -> None:
        told = type(self)
        told.shown.append(self.headers["Authorization"])
        body = told.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Stand for an exchange that answers nothing."""
        self.send_error(503)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@contextmanager
def health_page() -> Iterator[tuple[str, int]]:
    """Serve `HealthPage` for as long; yields its URL and port."""
    HealthPage.body, HealthPage.shown = b"", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HealthPage)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        port = int(server.server_address[1])
        yield f"http://127.0.0.1:{port}", port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
