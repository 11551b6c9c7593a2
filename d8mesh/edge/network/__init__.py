"""The machine's interfaces and ports: what can be listened on, reached, or is taken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import selectors
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from d8mesh.core.addresses import endpoint, in_order, is_admissible, is_loopback
from d8mesh.edge.network.watch import adapters
from d8mesh.errors import BrokerUnavailableError

#: Bridges of containers and virtual machines, by name: their address ranges are ordinary
#: private ones. Not every veth: a container's own way out may be called so.
_BRIDGE: Final = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{6,}|virbr\d+(-nic)?|veth[0-9a-f]{7,}|vmnet\d+"
    r"|(podman|cni|lxcbr|lxdbr|incusbr)\d+|cali[0-9a-f]{8,}"
    r"|vEthernet \((WSL|Default Switch|nat).*\)"
)
#: Addresses tried side by side for one orchestrator.
MAX_CANDIDATES: Final = 32
#: Largest answer of /health that is read.
MAX_HEALTH_BYTES: Final = 65_536


class InterfaceAddress(NamedTuple):
    """One usable address of this machine."""

    interface: str
    address: str


def usable_addresses(interfaces: Sequence[str] = ()) -> tuple[InterfaceAddress, ...]:
    """Return the private addresses of this machine, without container bridges.

    Takes 0.1 ms while nothing changes: it may be asked every few seconds.

    Args:
        interfaces: names or addresses to limit it to (a bridge that is named is taken);
            empty means all.

    Returns:
        IPv4 if there is any, else IPv6; link-local IPv6 never, as it means nothing without
        its zone. Loopback only if nothing else is up (an offline machine), or if it was
        asked for.
    """
    found: set[InterfaceAddress] = set()
    for adapter in adapters():
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if not is_admissible(address) or address.lower().startswith("fe80:"):
                continue
            is_asked_for = adapter.nice_name in interfaces or address in interfaces
            if is_asked_for or (not interfaces and not _BRIDGE.fullmatch(adapter.nice_name)):
                found.add(InterfaceAddress(adapter.nice_name, address))
    if not interfaces:
        found = {each for each in found if not is_loopback(each.address)} or found
    return tuple(sorted({each for each in found if ":" not in each.address} or found))


def unknown_interfaces(interfaces: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names and addresses that this machine does not have now."""
    known = set[str]()
    for adapter in adapters():
        known.add(adapter.nice_name)
        known |= {ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips}
    return tuple(name for name in interfaces if name not in known)


def own_names() -> frozenset[str]:
    """Return the names and addresses under which this machine may be called.

    In the form of `core.addresses.host_of`: lower case, no brackets, no port. Asks no
    name service and takes 0.1 ms; addresses change, so don't keep it for long.
    """
    names = {socket.gethostname().lower().rstrip(".")}
    names |= {name.partition(".")[0] for name in names}
    names |= {f"{name.partition('.')[0]}.local" for name in names}
    for adapter in adapters():
        names |= {ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips}
    return frozenset(names)


def first_reachable(
    candidates: Sequence[tuple[str, int]], *, deadline_s: float
) -> tuple[str, int] | None:
    """Return the candidate (address, port) that accepts a TCP connection first, or None.

    All are tried side by side, for at most `deadline_s` seconds; of several that accept at
    once the earlier one is taken. No connection is left open. A name among them is looked
    up first, for as long as the system's resolver takes; addresses cost no look-up.
    """
    until = time.monotonic() + deadline_s
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as open_sockets:
        for rank, (address, port) in enumerate(candidates[:MAX_CANDIDATES]):
            attempt = _dial(address, port)
            if attempt is not None:
                open_sockets.enter_context(attempt)
                selector.register(attempt, selectors.EVENT_WRITE, rank)
        while selector.get_map() and (left_s := until - time.monotonic()) > 0:
            accepted: list[int] = []
            for key, _ in selector.select(left_s):
                attempt = cast(socket.socket, key.fileobj)
                selector.unregister(attempt)
                if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    accepted.append(key.data)
            if accepted:
                return candidates[min(accepted)]
    return None


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
    """Return what stands for this machine: the same for all its processes and starts.

    A hash, so that the system's own id is told to nobody. Copied disks have the same one.
    """
    text = _system_id()
    if not text:
        node = uuid.getnode()
        is_made_up = bool(node >> 40 & 1)  # no network card: a random number each time
        text = socket.gethostname() if is_made_up else f"{node:012x}"
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"d8mesh").hexdigest()


def _system_id() -> str:
    if sys.platform == "win32":
        import winreg

        place = r"SOFTWARE\Microsoft\Cryptography"
        with contextlib.suppress(OSError):
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        return ""
    for source in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if text := source.read_text("ascii").strip():
                return text
    return ""


class Way(NamedTuple):
    """How an orchestrator can be reached: ``tcp://…`` (ZeroMQ) or ``http://…`` (exchange)."""

    endpoint: str

    @property
    def is_http(self) -> bool:
        """True when only the REST port can be reached."""
        return self.endpoint.startswith("http")

    @property
    def place(self) -> tuple[str, int]:
        """Address (or name) and port that a connection goes to."""
        parts = urlsplit(self.endpoint)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def find_way(
    addresses: Sequence[str], broker_port: int, web_port: int | None, *, deadline_s: float
) -> Way | None:
    """Return the best way to an orchestrator that advertises these addresses.

    All are tried side by side, 127.0.0.1 too if one of them is this machine's. The REST
    port is taken only when no address lets the broker's port through.
    """
    own = own_names()
    local = ["127.0.0.1"] if any(address in own for address in addresses) else []
    hosts = in_order([*local, *addresses])
    found = first_reachable([(host, broker_port) for host in hosts], deadline_s=deadline_s)
    if found is not None:
        return Way(endpoint(*found))
    if web_port is not None:
        found = first_reachable([(host, web_port) for host in hosts], deadline_s=deadline_s)
        if found is not None:
            return Way(endpoint(*found).replace("tcp://", "http://", 1))
    return None


def ask_health(url: str, *, deadline_s: float) -> dict[str, object]:
    """Return the JSON object of ``GET url/health``, whatever its status.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    import http.client  # slow to import, and most processes never need it

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=deadline_s)
    try:
        connection.request("GET", "/health", headers={"Accept": "application/json"})
        body = json.loads(connection.getresponse().read(MAX_HEALTH_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BrokerUnavailableError(f"no orchestrator answers at {url}: {error}") from error
    finally:
        connection.close()
    if not isinstance(body, dict) or not isinstance(body.get("broker_port"), int):
        raise BrokerUnavailableError(f"what answers at {url} is no orchestrator")
    return body


def find_way_by_url(url: str, *, deadline_s: float) -> Way:
    """Return the best way to the orchestrator whose REST is at `url`.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    port = ask_health(url, deadline_s=deadline_s)["broker_port"]
    assert isinstance(port, int)
    host = urlsplit(url).hostname or ""
    found = first_reachable([(host, port)], deadline_s=deadline_s)
    return Way(url) if found is None else Way(endpoint(*found))
