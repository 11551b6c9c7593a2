"""A broker on a thread of its own, and raw connections to it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TypeVar

from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, decode_to_worker, encode
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.errors import JournalError, ProtocolError
from d8mesh.nodes.broker import Broker, OpenStore
from tests.keyed import PEER, link_to

S = "0123456789abcdef"
PATIENCE_S = 20.0
_M = TypeVar("_M", bound=m.Message)


class Running:
    """A broker on a thread, and raw connections to it."""

    def __init__(
        self, folder: Path, open_store: OpenStore | None = None, **settings: object
    ) -> None:
        (port,) = free_ports(1)
        self.config = Config(
            mesh=f"broker-{port}", interfaces=("127.0.0.1",), broker_port=port, **settings  # type: ignore[arg-type]
        )  # fmt: skip
        self.folder = folder
        self.links: list[DealerLink] = []
        self.broker = Broker(self.config, folder, open_store=open_store)
        self.error: JournalError | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.broker.run()
        except JournalError as error:
            self.error = error

    def stop(self) -> None:
        for link in self.links:
            link.close()
        self.links.clear()
        self.broker.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()

    def link(self, keys: KeyPair = PEER) -> DealerLink:
        key = bytes.fromhex(self.broker.ready.server_key)
        made = link_to(self.broker.ready.port, server_key=key, keys=keys)
        self.links.append(made)
        return made

    def client(self, session: str = S) -> DealerLink:
        link = self.link()
        link.send(encode(m.ClientHello(1, self.config.mesh, session, "pc")))
        until(link, m.Welcome)
        return link

    def worker(self, name: str = "w", slots: int = 1, boot_id: str = "b") -> DealerLink:
        link = self.link()
        said = m.WorkerHello(
            1, self.config.mesh, name, boot_id, "t", "x", "h", 0, ["echo"], [], slots, slots, [], []
        )
        link.send(encode(said))
        until(link, m.Welcome)
        return link


def until(link: DealerLink, kind: type[_M]) -> _M:
    """Return the next message of a kind; others are passed over."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for frame in link.receive(1):
            try:
                message: m.Message = decode_to_client(frame)
            except ProtocolError:
                message = decode_to_worker(frame)
            if isinstance(message, kind):
                return message
        time.sleep(0.005)
    raise AssertionError(f"no {kind.__name__} came")


def submit(link: DealerLink, seq: int, first: int, count: int = 1) -> m.Accepted:
    link.send(encode(m.Submit(seq, S, first, [m.Group("echo", 5, [b"\x80"] * count)])))
    return until(link, m.Accepted)


def health(link: DealerLink) -> dict[str, object]:
    link.send(encode(m.Query(1, "health", {})))
    return until(link, m.Answer).body
