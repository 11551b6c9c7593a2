"""Debian's nginx in front of an orchestrator, with the configuration of ``docs/PROXY.md``."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path

from d8mesh.http.tls import TlsFiles
from tests.end_to_end.processes import until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "PROXY.md"
#: Where Debian has it; /usr/sbin is not on everybody's path.
PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
#: Around what the page has: all files in a folder of the test.
FRAME = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{page}
}}
"""


class Nginx:
    """Serves HTTPS at `place` for the orchestrator at a port of 127.0.0.1."""

    def __init__(self, folder: Path, tls: TlsFiles, place: tuple[str, int], rest: int) -> None:
        self.place, self._folder = place, folder
        found = re.search(r"```nginx\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        assert found is not None
        page = found[1]
        for old, new in (
            ("127.0.0.1:7001", f"127.0.0.1:{rest}"),
            ("listen 443 ssl", f"listen {place[0]}:{place[1]} ssl"),
            ("/etc/ssl/d8.example.org/fullchain.pem", str(tls.certificate)),
            ("/etc/ssl/d8.example.org/privkey.pem", str(tls.key)),
        ):
            assert page.count(old) == 1, old
            page = page.replace(old, new)
        (folder / "nginx.conf").write_text(FRAME.format(folder=folder, page=page))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        arguments = [PROGRAM, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        with (self._folder / "said").open("ab") as said:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=said)
        until(self._answers, f"nginx: {(self._folder / 'said').read_text()}")

    def stop(self) -> None:
        """End it at once, whatever is under way."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)

    def errors(self) -> str:
        return (self._folder / "error.log").read_text("utf-8", "replace")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "said").read_text()
        try:
            socket.create_connection(self.place, timeout=1.0).close()
        except OSError:
            return False
        return True
