"""The others that d8mesh is measured beside: prepared on demand, run one at a time.

One is started when its turn comes and ended after it: none disturbs the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from bench.findings import Findings
from bench.peers import PEERS
from bench.progress import say
from d8mesh.errors import D8Error


class Running(Protocol):
    """A peer with its workers, ready for tasks."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of its packages and servers."""

    @property
    def keeps(self) -> str:
        """What is left of its tasks after a power cut."""

    def throughput(self, tasks: int) -> float:
        """Return the tasks per second of `tasks` no-ops."""

    def latencies(self, count: int) -> list[float]:
        """Return the seconds of each of `count` tasks, one in flight."""


class Contender(Protocol):
    """A peer."""

    def prepare(self) -> None:
        """Install it, or raise `D8Error`."""

    def running(self, workers: int, payload: bytes) -> AbstractContextManager[Running]:
        """Start it, or raise `D8Error`."""


class Contest:
    """The peers that can run here.

    Args:
        found: is told of those that cannot, and why.
        peers: name -> peer.
    """

    def __init__(self, found: Findings, peers: Mapping[str, Contender] = PEERS) -> None:
        self._found = found
        self._ready: dict[str, Contender] = {}
        for name, peer in peers.items():
            say(f"preparing {name}")
            try:
                peer.prepare()
            except D8Error as error:
                found.note(f"{name} could not be measured here: {error}")
            else:
                self._ready[name] = peer

    def __bool__(self) -> bool:
        """True while anybody is left to compare with."""
        return bool(self._ready)

    def visit(self, workers: int, payload: bytes, look: Callable[[str, Running], None]) -> None:
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
