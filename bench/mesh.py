"""A real mesh for measuring: an orchestrator and workers as processes on loopback."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench.processes import Node, child_of, node
from d8mesh.apps.children import Children, RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.edge.address_file import FOLDER
from d8mesh.edge.transport.keys import public_key_in
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

#: How long the mesh may take to stand: a journal of ten million tasks is read in that time.
START_S: Final = 120.0
LOOK_S: Final = 0.01


@dataclass(slots=True)
class Mesh:
    """What a scenario needs to know of it."""

    config: Config
    url: str
    broker_port: int
    folder: Path
    orchestrator: RunningCommand
    workers: list[RunningCommand]
    children: Children

    def client(self) -> Client:
        """Return a client that is connected."""
        client = Client(self.url, config=self.config)
        if not client.wait_connected(START_S):
            raise D8Error("the client did not reach the orchestrator")
        return client

    @property
    def server_key(self) -> bytes:
        """The orchestrator's public key."""
        found = public_key_in(self.folder / FOLDER)
        if found is None:
            raise D8Error(f"the orchestrator has no key in {self.folder / FOLDER}")
        return found

    def broker(self) -> Node:
        """Return the broker's process."""
        return child_of(self.orchestrator.process.pid, "_broker")

    def nodes(self) -> list[Node]:
        """Return every process: launcher, broker, web, workers."""
        launcher = self.orchestrator.process.pid
        found = [node(launcher, "launcher"), self.broker(), child_of(launcher, "_web")]
        found += [node(each.process.pid, each.name) for each in self.workers]
        return found

    def add_worker(self, settings: Mapping[str, str] = MappingProxyType({})) -> RunningCommand:
        """Start one more worker with `settings` of its own, without waiting for it."""
        name = f"worker {len(self.workers) + 1}"
        child = self.children.start(name, "worker", settings=settings)
        self.workers.append(child)
        return child

    def restart_orchestrator(self) -> None:
        """Start the orchestrator again after its death, without waiting for it."""
        self.orchestrator = self.children.start("orchestrator", "orchestrator")

    def await_workers(self, count: int) -> None:
        """Wait until the orchestrator answers and has `count` workers."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for child in (self.orchestrator, *self.workers):
                if not child.is_running:
                    raise D8Error(f"the {child.name} ended: {' / '.join(child.lines)}")
            with contextlib.suppress(OSError, KeyError):
                if ask(self.url, "/health")["workers_online"] >= count:
                    return
            time.sleep(LOOK_S)
        raise D8Error(f"the mesh did not stand within {START_S:.0f} s")


@contextlib.contextmanager
def mesh(
    *,
    workers: int,
    folder: Path | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Mesh]:
    """Start an orchestrator and `workers` workers; end them after.

    Args:
        workers: how many worker processes.
        folder: where the data lies; None: somewhere that is removed after.
        settings: of all of them, over those that are needed here.
    """
    with tempfile.TemporaryDirectory(prefix="d8-bench-", ignore_cleanup_errors=True) as scratch:
        home = folder or Path(scratch)
        rest, broker, status = free_ports(3)
        name = f"bench-{secrets.token_hex(3)}"
        given = {
            "D8_MESH": name,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(home),
            "D8_BROKER_PORT": str(broker),
            "FLASK_HOST": "127.0.0.1",
            "FLASK_PORT": str(rest),
            "WORKER_STATUS_PORT": str(status),
            "ORCHESTRATOR_URL": "",
            "WORKER_ID": "",
            "D8_OLLAMA_SERVE": "0",
            "TASK_QUEUE_SIZE": "100000000",
            "D8_QUEUE_BYTES": "100000000000",
            **dict.fromkeys(("D8_JOIN", "D8_MESH_KEY", "D8_TLS", "D8_TOKEN"), ""),
            **settings,
        }
        # Apart: a mesh that is soon gone is nothing for the pins of whoever runs this.
        apart = str(home / "bench-client")
        config = Config(mesh=name, interfaces=("127.0.0.1",), data_dir=apart)
        with Children(given) as children:
            orchestrator = children.start("orchestrator", "orchestrator")
            running = Mesh(
                config, f"http://127.0.0.1:{rest}", broker, home, orchestrator, [], children
            )
            for _ in range(workers):
                running.add_worker()
            running.await_workers(workers)
            yield running
