"""The others that d8mesh is measured beside: prepared on demand, run one at a time.

`bench.peers` offers ``PEERS: dict[str, Peer]``. A `Peer` has ``prepare(cache)``, which installs
it into an environment of its own or raises `D8Error`, and ``running(workers, payload)``, a
context manager of a session with ``throughput(tasks)`` (tasks/s), ``latencies(count)`` (seconds,
one in flight), ``versions`` and ``keeps`` (what it keeps after a power cut).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.findings import Findings
from bench.progress import say
from d8mesh.errors import D8Error

#: Where peers are installed.
CACHE: Final = Path.home() / ".cache" / "d8mesh-bench"


class Contest:
    """The peers that can run here.

    Args:
        found: is told of those that cannot, and why.
        peers: name -> peer; None: all of `bench.peers`.
    """

    def __init__(self, found: Findings, peers: Mapping[str, Any] | None = None) -> None:
        self._found = found
        self._ready: dict[str, Any] = {}
        if peers is None:
            peers = dict(importlib.import_module("bench.peers").PEERS)
        for name, peer in peers.items():
            say(f"preparing {name}")
            try:
                peer.prepare(CACHE)
            except D8Error as error:
                found.note(f"{name} could not be measured here: {error}")
            else:
                self._ready[name] = peer

    def __bool__(self) -> bool:
        """True while anybody is left to compare with."""
        return bool(self._ready)

    def visit(self, workers: int, payload: bytes, look: Callable[[str, Any], None]) -> None:
        """Start each peer, give its name and session to `look`, and end it again.

        One that fails is told of and not asked again.
        """
        for name, peer in list(self._ready.items()):
            say(f"{name}, {workers} worker(s)")
            try:
                with peer.running(workers, payload) as session:
                    look(name, session)
                    versions = ", ".join(f"{k} {v}" for k, v in session.versions.items())
                    self._found.note(f"{name}: {versions}; after a power cut: {session.keeps}")
            except D8Error as error:
                self._found.note(f"{name} failed with {workers} worker(s): {error}")
                del self._ready[name]
