"""An orchestrator that welcomes whoever its gate lets in, and counts who asks."""

from __future__ import annotations

import threading
from typing import Self

from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import Beat, ClientHello, Heartbeat, Watch, Welcome, WorkerHello
from d8mesh.edge.transport.keys import KeyPair
from tests.keyed import SERVER, endpoint_of, router_at
from tests.nodes.mesh import free_port


class GatedBroker:
    """Says what `verdict` is to every key; welcomes, answers heartbeats, and does no more."""

    def __init__(self, verdict: Verdict, *, port: int = 0, keys: KeyPair = SERVER) -> None:
        self.verdict = verdict
        #: the keys that have knocked, each time
        self.knocks: list[bytes] = []
        self.port = port or free_port()
        self.endpoint = endpoint_of(self.port, SERVER.public)
        self.heard = 0
        self._keys = keys
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _gate(self, address: str, key: bytes) -> Verdict:
        del address
        self.knocks.append(key)
        return self.verdict

    def _serve(self) -> None:
        router = router_at(self.port, gate=self._gate, keys=self._keys)
        try:
            while not self._is_over.wait(0.01):
                for peer, frame in router.receive(100):
                    self.heard += 1
                    message = decode_to_broker(frame or b"")
                    if isinstance(message, ClientHello | WorkerHello):
                        version = message.version
                        router.send(
                            peer.routing_id, encode(Welcome(version, 1, "gated", 0.5, 9.0, []))
                        )
                    elif isinstance(message, Heartbeat | Watch):
                        router.send(peer.routing_id, encode(Beat(1)))
        finally:
            router.close()
