"""The machine's interfaces and ports: what can be listened on, reached, or is taken."""

from __future__ import annotations

import contextlib
import hashlib
import re
import selectors
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

import ifaddr

from d8mesh.core.addresses import is_admissible, is_loopback

#: Container and VM bridges, by name: their address ranges are ordinary private ones.
_BRIDGE: Final = re.compile(r"docker\d+|br-[0-9a-f]{6,}|virbr\d+|veth[0-9a-f]{6,}|vmnet\d+|cni\d+")
#: Addresses tried side by side for one orchestrator.
MAX_CANDIDATES: Final = 32


class InterfaceAddress(NamedTuple):
    """One usable address of this machine."""

    interface: str
    address: str


def usable_addresses(interfaces: Sequence[str] = ()) -> tuple[InterfaceAddress, ...]:
    """Return the private addresses of this machine, without container bridges.

    Args:
        interfaces: names or addresses to limit it to; empty means all.

    Returns:
        Loopback only if nothing else is up (an offline machine) or if it was asked for.
    """
    found: list[InterfaceAddress] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if not is_admissible(address):
                continue
            is_wanted = not interfaces or adapter.nice_name in interfaces or address in interfaces
            if is_wanted and (interfaces or not _BRIDGE.fullmatch(adapter.nice_name)):
                found.append(InterfaceAddress(adapter.nice_name, address))
    if not interfaces:
        outward = [each for each in found if not is_loopback(each.address)]
        found = [each for each in outward if ":" not in each.address] or outward or found
    return tuple(sorted(set(found)))


def own_names() -> frozenset[str]:
    """Return the names and addresses under which this machine may be called, lower case."""
    names = {socket.gethostname().lower().rstrip(".")}
    names |= {name.partition(".")[0] for name in names}
    names |= {f"{name.partition('.')[0]}.local" for name in names}
    for adapter in ifaddr.get_adapters():
        names |= {ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips}
    return frozenset(names)


def first_reachable(
    candidates: Sequence[tuple[str, int]], *, deadline_s: float
) -> tuple[str, int] | None:
    """Return the candidate (address, port) that accepts a TCP connection first.

    All are tried side by side, for at most `deadline_s` seconds.
    """
    until = time.monotonic() + deadline_s
    with selectors.DefaultSelector() as selector:
        for address, port in candidates[:MAX_CANDIDATES]:
            attempt = _dial(address, port)
            if attempt is not None:
                selector.register(attempt, selectors.EVENT_WRITE, (address, port))
        pending = {key.fileobj: key.data for key in selector.get_map().values()}
        try:
            while pending and (left := until - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    attempt = cast(socket.socket, key.fileobj)
                    selector.unregister(attempt)
                    candidate: tuple[str, int] = pending.pop(attempt)
                    error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    attempt.close()
                    if error == 0:
                        return candidate
            return None
        finally:
            for left_over in pending:
                cast(socket.socket, left_over).close()


def _dial(address: str, port: int) -> socket.socket | None:
    try:
        family, kind, proto, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[
            0
        ]
        attempt = socket.socket(family, kind, proto)
    except OSError:
        return None
    attempt.setblocking(False)
    try:
        attempt.connect(target)
    except BlockingIOError:
        pass  # under way: the selector tells when it is decided
    except OSError:
        attempt.close()
        return None
    return attempt


def port_holder(port: int) -> str | None:
    """Return who listens on a TCP port, as "name (process N)", if this machine tells."""
    if not sys.platform.startswith("linux"):
        return None
    inodes = _listening_inodes(port)
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (process / "fd").iterdir():
                    if descriptor.readlink().name in inodes:
                        name = (process / "comm").read_text("utf-8", "replace").strip()
                        return f"{name} (process {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return inodes


def machine_id() -> str:
    """Return what stands for this machine: the same for all its processes and starts."""
    for source in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with contextlib.suppress(OSError):
            text = source.read_text("ascii").strip()
            if text:
                return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{uuid.getnode():012x}"
