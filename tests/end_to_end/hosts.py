"""Real hosts on a LAN of their own: network namespaces joined by a bridge.

Everything, the bridge too, lives in namespaces that this run made: the machine's own network
is not touched, and several runs go side by side. Linux and root only: ask `available` first.

A firewall is a routing rule (``ip rule … blackhole``): packets to a blocked port are dropped
in silence, as ``ufw`` does it, and no package but iproute2 is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Final, Self

#: One `ip` command takes milliseconds; this only bounds a machine that hangs.
_COMMAND_S: Final = 20.0
#: How long killed processes may take to be gone.
_KILL_S: Final = 10.0
#: The hosts' addresses are NETWORK.1, NETWORK.2, …; no packet ever leaves the namespaces.
NETWORK: Final = "10.77.0"


@functools.cache
def available() -> str | None:
    """Return None if hosts can be made here, else why not."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are a Linux thing"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is missing (Debian: iproute2)"
    try:
        with Lan(hosts=1) as lan:
            lan.hosts[0].block_tcp(9)
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"
    return None


class Host:
    """One machine of a `Lan`, with loopback and one card, ``eth0``."""

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self._processes: list[subprocess.Popen[str]] = []

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, within_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end.

        Raises:
            subprocess.TimeoutExpired: it did not end within `within_s`; it was killed.
        """
        return subprocess.run(
            self._command(argv),
            env=_environment(env),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=within_s,
        )

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a program there; it is killed when the LAN is taken down.

        The process id is the program's own, so it can be signalled. Its output must be
        read, or given a file.

        Args:
            env: added to this process's environment.
        """
        process = subprocess.Popen(
            self._command(argv),
            env=_environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C of the test run is not theirs
        )
        self._processes.append(process)
        return process

    def block_tcp(self, first: int, last: int | None = None, *, source: str = "") -> None:
        """Drop, in silence, what comes from other hosts, or from one, for these TCP ports.

        Connections that are open go dead too. Keep below 32768: answers to the host's own
        connections arrive at the ports above.
        """
        whose = ("from", source) if source else ()
        blocked = (*whose, "iif", "eth0", *_ports(first, last), "blackhole")
        self._ip("rule", "add", "pref", "9" if source else "10", *blocked)

    def unblock_tcp(self, first: int, last: int | None = None) -> None:
        """Take a `block_tcp` with the same ports back."""
        self._ip("rule", "del", "pref", "10", "iif", "eth0", *_ports(first, last), "blackhole")

    def link_down(self) -> None:
        """Take the card down: its address stays written there, but its routes are gone."""
        self._ip("link", "set", "eth0", "down")

    def link_up(self) -> None:
        """Take the card up again."""
        self._ip("link", "set", "eth0", "up")
        self._route_multicast()

    def change_address(self, address: str) -> None:
        """Give the card another address instead of the one it has."""
        self._ip("address", "flush", "dev", "eth0", "scope", "global")
        self._ip("address", "add", f"{address}/24", "dev", "eth0")
        self._route_multicast()
        self.address = address

    def kill_all(self) -> None:
        """Kill every process that runs there, and wait until all are gone.

        Raises:
            OSError: some are still there after 10 s.
        """
        deadline = time.monotonic() + _KILL_S
        for process in self._processes:  # one that has just begun may not be in there yet
            process.kill()
        while pids := _run("ip", "netns", "pids", self.namespace).split():
            if time.monotonic() > deadline:
                raise OSError(f"processes {pids} in {self.namespace} do not die")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for process in self._processes:
                process.poll()  # a child of ours stays until it is waited for
            time.sleep(0.02)
        for process in self._processes:
            process.wait(_KILL_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _set_up(self) -> None:
        self._ip("link", "set", "lo", "up")
        self._ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.link_up()
        # The rule for local addresses comes first by default: before it nothing can be blocked.
        self._ip("rule", "add", "pref", "100", "lookup", "local")
        self._ip("rule", "del", "pref", "0")

    def _route_multicast(self) -> None:
        self._ip("route", "replace", "224.0.0.0/4", "dev", "eth0")

    def _ip(self, *args: str) -> str:
        return _run("ip", "-n", self.namespace, *args)

    def _command(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]


class Lan:
    """Hosts on one switch; a context manager that leaves nothing behind.

    Args:
        hosts: how many; host n has the address NETWORK.n+1.

    Raises:
        OSError: on entering, if a namespace, link or address cannot be made.
    """

    def __init__(self, hosts: int = 3) -> None:
        run = secrets.token_hex(3)
        self._switch = f"d8-{run}-lan"
        self.hosts = [Host(f"d8-{run}-h{n}", f"{NETWORK}.{n + 1}") for n in range(hosts)]

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tear_down()

    def unplug(self, host: Host) -> None:
        """Pull the host's cable: it keeps its address, but nothing gets through."""
        self._ip("link", "set", self._port(host), "down")

    def plug(self, host: Host) -> None:
        """Put the cable back."""
        self._ip("link", "set", self._port(host), "up")

    def partition(self, apart: Sequence[Host]) -> None:
        """Split the LAN: `apart` among themselves, all others among themselves.

        No host can tell: cards, addresses and routes stay as they are.
        """
        for host in self.hosts:
            bridge = "br1" if host in apart else "br0"
            self._ip("link", "set", self._port(host), "master", bridge)

    def heal(self) -> None:
        """Join what `partition` split."""
        self.partition([])

    def _set_up(self) -> None:
        _run("ip", "netns", "add", self._switch)
        for bridge in ("br0", "br1"):
            # Without snooping it forwards multicast to all; without spanning tree, at once.
            self._ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
            self._ip("link", "set", bridge, "up")
        for host in self.hosts:
            _run("ip", "netns", "add", host.namespace)
            port, far = self._port(host), ("peer", "name", "eth0", "netns", host.namespace)
            self._ip("link", "add", port, "type", "veth", *far)
            self._ip("link", "set", port, "master", "br0", "up")
            host._set_up()

    def _tear_down(self) -> None:
        """Kill and delete all that is there; what fails is said at the end, not on the way."""
        troubles: list[str] = []
        there = {line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line}
        for host in self.hosts:
            if host.namespace in there:
                try:
                    host.kill_all()
                except (OSError, subprocess.TimeoutExpired) as error:
                    troubles.append(str(error))
        for namespace in [*(host.namespace for host in self.hosts), self._switch]:
            if namespace in there:
                try:
                    _run("ip", "netns", "delete", namespace)
                except OSError as error:
                    troubles.append(str(error))
        if troubles:
            raise OSError("; ".join(troubles))

    def _port(self, host: Host) -> str:
        return f"p{self.hosts.index(host)}"

    def _ip(self, *args: str) -> str:
        return _run("ip", "-n", self._switch, *args)


def _run(*argv: str) -> str:
    done = subprocess.run(
        argv, capture_output=True, encoding="utf-8", errors="replace", timeout=_COMMAND_S
    )
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _ports(first: int, last: int | None) -> list[str]:
    span = str(first) if last is None else f"{first}-{last}"
    return ["ipproto", "tcp", "dport", span]


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    # The tests' own settings keep to loopback; a host has a LAN.
    return {**os.environ, "FLASK_HOST": "", **(extra or {})}
