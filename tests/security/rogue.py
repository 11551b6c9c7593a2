"""A rogue orchestrator: says over mDNS that it is one of a mesh, and notes whoever comes.

``python -m tests.security.rogue MESH PORT WEB_PORT [--key HEX] [--proof HEX] [--id ID]``

It listens at both ports, says nothing, and prints a JSON line for each connection and for all that
it has read at its end. It ends, with its goodbyes, when its standard input does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import socket
import sys
import threading

from d8mesh.edge.discovery import Announcement, Discovery, NodeKind
from d8mesh.edge.network import usable_addresses
from d8mesh.edge.transport.keys import new_pair


class Rogue:
    """Listens at two ports of `host` and counts.

    Attributes:
        connections: how many came.
        heard: what each has said, the first bytes of it.
    """

    def __init__(self, host: str, port: int, web_port: int) -> None:
        self.connections = 0
        self.heard: list[bytes] = []
        self._servers = [socket.create_server((host, each)) for each in (port, web_port)]
        self.port, self.web_port = (int(each.getsockname()[1]) for each in self._servers)
        self._is_over, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._waker.close()
        self._thread.join()
        self._is_over.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
            for each in self._servers:
                selector.register(opened.enter_context(each), selectors.EVENT_READ)
            selector.register(self._is_over, selectors.EVENT_READ)
            at: dict[socket.socket, int] = {}
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    assert isinstance(ready, socket.socket)
                    if ready is self._is_over:
                        return
                    if ready in self._servers:
                        near = opened.enter_context(ready.accept()[0])
                        at[near] = len(self.heard)
                        self.heard.append(b"")
                        selector.register(near, selectors.EVENT_READ)
                        self.connections += 1
                        continue
                    try:
                        told = ready.recv(65_536)
                    except OSError:
                        told = b""
                    self.heard[at[ready]] += told
                    if not told:
                        selector.unregister(ready)
                        ready.close()


def announcement(
    mesh: str, rogue: Rogue, *, broker_id: str = "rogue", key: bytes, proof: bytes = b""
) -> Announcement:
    """Return what it says of itself over mDNS."""
    return Announcement(
        kind=NodeKind.ORCHESTRATOR,
        node_id=broker_id,
        boot_id=f"rogue{rogue.port}",
        mesh=mesh,
        port=rogue.port,
        web_port=rogue.web_port,
        version="1",
        server_key=key,
        proof=proof,
    )


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mesh")
    parser.add_argument("port", type=int)
    parser.add_argument("web_port", type=int)
    parser.add_argument("--key", default=new_pair().public.hex())
    parser.add_argument("--proof", default="")
    parser.add_argument("--id", default="rogue")
    given = parser.parse_args()
    rogue = Rogue("0.0.0.0", given.port, given.web_port)
    discovery = Discovery(
        mesh=given.mesh, addresses=lambda: [each.address for each in usable_addresses()]
    )
    key, proof = bytes.fromhex(given.key), bytes.fromhex(given.proof)
    discovery.announce(announcement(given.mesh, rogue, broker_id=given.id, key=key, proof=proof))
    discovery.start()
    print(json.dumps({"key": given.key}), flush=True)
    for _ in sys.stdin:  # each line asks what has come so far
        heard = [each.hex() for each in rogue.heard]
        print(json.dumps({"connections": rogue.connections, "heard": heard}), flush=True)
    discovery.close()
    rogue.close()


if __name__ == "__main__":
    main()
