"""A real mesh for measuring: an orchestrator and workers as processes on loopback."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d8mesh.apps.children import Child, Children
from d8mesh.apps.demo import free_ports
from d8mesh.apps.status import ask
from d8mesh.config import Config
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

START_S = 60.0


@dataclass(slots=True)
class Mesh:
    """What a scenario needs to know of it."""

    config: Config
    url: str
    folder: Path
    orchestrator: Child
    workers: list[Child]
    children: Children

    def client(self) -> Client:
        """Return a client that is connected."""
        client = Client(self.url, config=self.config)
        if not client.wait_connected(START_S):
            raise D8Error("the client did not reach the orchestrator")
        return client


@contextlib.contextmanager
def mesh(*, workers: int, folder: Path | None = None) -> Iterator[Mesh]:
    """Start an orchestrator and `workers` workers; end them after."""
    with tempfile.TemporaryDirectory(prefix="d8-bench-", ignore_cleanup_errors=True) as scratch:
        home = folder or Path(scratch)
        rest, broker, status = free_ports(3)
        name = f"bench-{secrets.token_hex(3)}"
        settings = {
            "D8_MESH": name,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(home),
            "D8_BROKER_PORT": str(broker),
            "FLASK_HOST": "127.0.0.1",
            "FLASK_PORT": str(rest),
            "WORKER_STATUS_PORT": str(status),
            "ORCHESTRATOR_URL": "",
            "WORKER_ID": "",
            "TASK_QUEUE_SIZE": "100000000",
        }
        config = Config(mesh=name, interfaces=("127.0.0.1",))
        with Children(settings) as children:
            orchestrator = children.start("orchestrator", "orchestrator")
            started = [children.start(f"worker {n + 1}", "worker") for n in range(workers)]
            url = f"http://127.0.0.1:{rest}"
            _wait(url, workers, [orchestrator, *started])
            yield Mesh(config, url, home, orchestrator, started, children)


def _wait(url: str, workers: int, running: list[Child]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        for child in running:
            if not child.is_running:
                raise D8Error(f"the {child.name} ended: {' / '.join(child.lines)}")
        with contextlib.suppress(OSError, KeyError):
            if ask(url, "/health")["workers_online"] >= workers:
                return
        time.sleep(0.05)
    raise D8Error("the mesh did not stand in time")
