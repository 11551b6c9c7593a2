"""The others that d8mesh is measured beside, each as its own documentation would run it.

A peer has an environment of its own, made on demand (`bench.peers.environment`), with the newest
release of its packages. Its client and its workers are in `bench.inside`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench.peers import servers
from bench.peers.environment import environment
from bench.peers.session import Session, session

NOTHING: Final = "nothing"
SNAPSHOTS: Final = "what Redis' last snapshot has (its default)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of them.

    Args:
        name: as it stands in the tables.
        script: its module in `bench.inside`.
        requires: what pip installs.
        keeps: what is left of the tasks after a power cut.
        server: starts what it needs beside itself, and gives the settings of its processes.
        program: that server's program and the Debian package that has it.
    """

    name: str
    script: str
    requires: tuple[str, ...]
    keeps: str = NOTHING
    server: Callable[[Path], AbstractContextManager[servers.Running]] = servers.nothing
    program: tuple[str, str] | None = None

    def prepare(self) -> None:
        """Install it.

        Raises:
            D8Error: it cannot be had here; the message says why.
        """
        if self.program is not None:
            servers.provide(*self.program)
        environment(self.requires)

    @contextlib.contextmanager
    def running(self, workers: int, payload: bytes) -> Iterator[Session]:
        """Start its server, its workers and its client; end them after.

        Raises:
            D8Error: one of them did not come up.
        """
        with contextlib.ExitStack() as stack:
            # short: Ray puts sockets in there, whose paths are bounded to about 100 bytes
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="d8p-", ignore_cleanup_errors=True)
                )
            )
            server = stack.enter_context(self.server(folder))
            python = environment(self.requires)
            told = {
                "workers": workers,
                "payload_bytes": len(payload),
                "folder": str(folder),
                "url": server.url,
            }
            command = [str(python), "-m", f"bench.inside.{self.script}", json.dumps(told)]
            # scripts of the environment first: Parsl starts some of its own by name
            path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
            settings = {servers.URL: server.url, "PATH": path}
            running = stack.enter_context(session(command, settings, folder, self.keeps))
            running.versions.update(server.versions)
            yield running


_ALL: Final = (
    Peer(
        name="NATS request/reply",
        script="on_nats",
        requires=("nats-py",),
        server=servers.nats,
        program=("nats-server", "nats-server"),
    ),
    Peer(
        name="NATS JetStream",
        script="on_jetstream",
        requires=("nats-py",),
        keeps="all but the last two minutes (its default; each is on the disk's way at once)",
        server=servers.jetstream,
        program=("nats-server", "nats-server"),
    ),
    Peer(
        name="dramatiq + Redis",
        script="on_dramatiq",
        requires=("dramatiq[redis]", "hiredis"),
        keeps=SNAPSHOTS,
        server=servers.redis,
        program=("redis-server", "redis-server"),
    ),
    Peer(
        name="Celery + Redis",
        script="on_celery",
        requires=("celery[redis]", "hiredis"),
        keeps=SNAPSHOTS,
        server=servers.redis,
        program=("redis-server", "redis-server"),
    ),
    Peer(name="Dask distributed", script="on_dask", requires=("distributed",)),
    Peer(name="Ray", script="on_ray", requires=("ray",)),
    Peer(name="Parsl HTEX", script="on_parsl", requires=("parsl",)),
    Peer(name="ipyparallel", script="on_ipyparallel", requires=("ipyparallel",)),
)

PEERS: Final[Mapping[str, Peer]] = MappingProxyType({peer.name: peer for peer in _ALL})
