"""A real broker, workers and clients in one process, for tests."""

from __future__ import annotations

import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.edge.pins import PinFile
from d8mesh.edge.transport.keys import KEY_FILE, kept_pair
from d8mesh.nodes.broker import Broker
from d8mesh.nodes.client import Client
from d8mesh.nodes.worker import Worker
from tests.keyed import endpoint_of

PATIENCE_S = 30.0


def free_port() -> int:
    return free_ports(1)[0]


def until(what: Callable[[], object]) -> None:
    """Wait until `what` is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class Mesh:
    """One mesh of its own on loopback."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.mesh = f"test-{secrets.token_hex(4)}"
        self.brokers: list[tuple[Broker, threading.Thread]] = []

    def config(
        self, *, port: int = 7010, data: str = "data", interface: str = "127.0.0.1"
    ) -> Config:
        return Config(
            mesh=self.mesh,
            web_host="127.0.0.1",
            interfaces=(interface,),
            data_dir=str(self._folder / data),
            broker_port=port,
        )

    def broker(
        self,
        name: str = "o",
        *,
        port: int | None = None,
        is_announced: bool = False,
        keys_of: str = "",
        **settings: Any,
    ) -> int:
        """Start a broker and return its port.

        Args:
            keys_of: it has the key file of the broker of that name.
            is_announced: mDNS tells of it, and its end then takes a quarter of a second more.
        """
        port = port or free_port()
        if keys_of:
            (self._folder / name).mkdir()
            shutil.copy2(self._folder / keys_of / KEY_FILE, self._folder / name / KEY_FILE)
        made: queue.Queue[Broker] = queue.Queue()
        interface = "127.0.0.1" if is_announced else "no-mdns"
        config = replace(self.config(port=port, interface=interface), **settings)

        def serve() -> None:  # a broker is made and run on one thread
            broker = Broker(config, self._folder / name)
            made.put(broker)
            broker.run()

        thread = threading.Thread(target=serve)
        thread.start()
        broker = made.get(timeout=PATIENCE_S)
        self.brokers.append((broker, thread))
        self._trust_all()
        self._stack.callback(self.stop_broker, broker, thread)
        return broker.ready.port

    def endpoint(self, port: int) -> str:
        """Return where the broker is that was started last at `port`, with its key."""
        return endpoint_of(port, self.key(port))

    def key(self, port: int) -> bytes:
        """Return the public key of the broker that was started last at `port`.

        Where none was started it is that of the broker "o", which may come later.
        """
        found = [broker.ready for broker, _ in self.brokers if broker.ready.port == port]
        return (
            bytes.fromhex(found[-1].server_key) if found else kept_pair(self._folder / "o").public
        )

    def _trust_all(self) -> None:
        """Have all of several brokers trusted, as a person does; one alone is by itself."""
        pins = PinFile(self._folder / "data")
        keys = [bytes.fromhex(broker.ready.server_key) for broker, _ in self.brokers]
        for key in keys if len(set(keys)) > 1 else ():
            pins.add(self.mesh, Pin(fingerprint(key), key))

    def stop_broker(self, broker: Broker, thread: threading.Thread) -> None:
        if thread.is_alive():
            broker.stop()
            thread.join(PATIENCE_S)

    def worker(self, port: int | str | None, *, slots: int = 2, name: str | None = None) -> Worker:
        """Return a worker for the broker at `port` (or endpoint), or for all that mDNS finds."""
        if port is None:
            return Worker(config=self.config(), slots=slots, name=name)
        config = self.config(interface="no-mdns")
        place = port if isinstance(port, str) else self.endpoint(port)
        return Worker(place, config=config, slots=slots, name=name)

    def run(self, worker: Worker) -> Worker:
        worker.start()
        self._stack.callback(worker.stop, drain_s=1.0)
        assert worker.wait_joined(PATIENCE_S)
        return worker

    def at_end(self, call: Callable[[], object]) -> None:
        """Call this at the end of the test."""
        self._stack.callback(call)

    def client(self, port: int) -> Client:
        client = Client(endpoint=self.endpoint(port), config=self.config())
        self._stack.callback(client.close)
        return client


@contextmanager
def mesh_in(folder: Path) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield Mesh(folder, stack)
