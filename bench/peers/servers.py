"""The servers that some peers need, on a free port of loopback, with their own defaults."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.processes import kill_tree
from bench.progress import say
from d8mesh.apps.demo import free_ports
from d8mesh.errors import D8Error

#: Tells a peer's processes where its server is.
URL: Final = "D8_BENCH_REDIS"
#: How long a server may take to listen.
LISTEN_S: Final = 20.0
LOOK_S: Final = 0.05
#: A package of a few megabytes.
INSTALL_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server, or nothing: `url` is empty then."""

    url: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def provide(program: str, package: str) -> None:
    """Make sure that `program` is there; as root on Debian its package is installed.

    Raises:
        D8Error: it is not there and cannot be installed.
    """
    if shutil.which(program):
        return
    installer = shutil.which("apt-get")
    if installer is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise D8Error(f"it needs {program}: install the package {package} and run this again")
    say(f"installing the package {package}")
    _run(installer, "update", "-q")  # if it fails, what it knew may do
    done = _run(installer, "install", "-q", "-y", "--no-install-recommends", package)
    if done.returncode or not shutil.which(program):
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise D8Error(f"the package {package} could not be installed: {lines[-1]}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        timeout=INSTALL_S,
    )


@contextlib.contextmanager
def nothing(_: Path) -> Iterator[Running]:
    """For peers that start all they need."""
    yield Running()


@contextlib.contextmanager
def nats(_: Path) -> Iterator[Running]:
    """Run NATS, which keeps nothing."""
    (port,) = free_ports(1)
    with _server(["nats-server", "-a", "127.0.0.1", "-p", str(port)], port):
        yield Running(f"nats://127.0.0.1:{port}", _version("nats-server"))


@contextlib.contextmanager
def jetstream(folder: Path) -> Iterator[Running]:
    """Run NATS with JetStream's files in `folder`."""
    (port,) = free_ports(1)
    command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
    with _server(command, port):
        yield Running(f"nats://127.0.0.1:{port}", _version("nats-server"))


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Running]:
    """Run Redis with its snapshots in `folder`."""
    (port,) = free_ports(1)
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    with _server(command, port):
        yield Running(f"redis://127.0.0.1:{port}/0", _version("redis-server"))


@contextlib.contextmanager
def _server(command: Sequence[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(command[0], process, port)
        yield
    finally:
        with contextlib.suppress(LookupError):
            kill_tree(process.pid)
        process.wait()


def _await_port(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + LISTEN_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LOOK_S):
            return
        time.sleep(LOOK_S)
    raise D8Error(f"{name} did not listen on port {port} within {LISTEN_S:.0f} s")


def _version(program: str) -> dict[str, str]:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=LISTEN_S)
    words = told.stdout.replace("v=", " ").replace(":", " ").split()
    return {
        program: next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit()), "?")
    }
