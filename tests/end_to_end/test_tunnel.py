"""Workers and clients that reach port 7001 alone, while the processes behind it are killed."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.mesh import Mesh, mesh
from bench.processes import child_of
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.nodes.client import Client, Task
from tests.end_to_end.processes import kill, until

#: An address of this machine where the broker does not listen: as behind a firewall.
BEHIND = "127.0.0.3"
PATIENCE_S = 90.0
#: What is cut after each wave of tasks.
CUTS = ("way", "_web", "way", "_broker", "_web", "way")
WAVE = 1000


class Forwarder:
    """Lets one port through, and can drop every connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self._listener = target, socket.create_server((BEHIND, 0))
        self.url = f"http://{BEHIND}:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                try:
                    there = socket.create_connection(self._target, timeout=5.0)
                except OSError:
                    here.close()
                    continue
                there.settimeout(None)
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=_carry, args=pair, daemon=True).start()

    def drop(self) -> None:
        """Break all connections, in the middle of whatever they carry."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.drop()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(65536):
            target.sendall(data)


@pytest.fixture
def running() -> Iterator[Mesh]:
    with mesh(workers=0, settings={"D8_ALLOWED_HOSTS": BEHIND}) as made:
        yield made


def output_of(n: int) -> dict[str, object]:
    return {"n": n, "digest": hashlib.sha256(b"%d" % n).hexdigest() * 8}


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_while_the_way_and_both_ends_of_it_are_cut(
    running: Mesh, tmp_path: Path
) -> None:
    way = Forwarder(("127.0.0.1", urlsplit(running.url).port or 0))
    (status,) = free_ports(1)
    worker = running.children.start(
        "worker",
        "worker",
        settings={
            "ORCHESTRATOR_URL": way.url,
            "D8_DATA_DIR": str(tmp_path / "worker"),
            "D8_INTERFACES": "no-mdns",
            "WORKER_STATUS_PORT": str(status),
        },
    )
    until(lambda: any(f" at {way.url}" in line for line in worker.lines), str(worker.lines))
    config = Config(
        mesh=running.config.mesh, interfaces=("no-mdns",), data_dir=str(tmp_path / "client")
    )
    launcher = running.orchestrator.process.pid
    with Client(way.url, config=config) as client:
        assert client.wait_connected(PATIENCE_S)
        assert client.is_over_http
        tasks: list[Task] = []
        for at, cut in enumerate(CUTS):
            wave = range(at * WAVE, (at + 1) * WAVE)
            tasks += client.submit_many("echo", [output_of(n) for n in wave])
            # What is under way is cut, whatever it is: now, or with the first results.
            if at % 2:
                tasks[-WAVE].result(PATIENCE_S)
            if cut == "way":
                way.drop()
            else:
                kill(child_of(launcher, cut).process.pid)
        for n, task in enumerate(tasks):
            assert task.result(PATIENCE_S)["output"] == output_of(n)
        assert client.is_over_http
    counted = answered(running)["tasks"]
    assert (counted["completed"], counted["failed"]) == (len(tasks), 0)
    way.close()


def answered(running: Mesh) -> dict[str, Any]:
    """Return the counts; the process that answers may just have been brought back."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        with contextlib.suppress(OSError):
            found.append(ask(running.url, "/api/stats"))
        return bool(found and "tasks" in found[-1])

    until(is_there, "an answer")
    return found[-1]
