"""The machine's interfaces and ports: what can be listened on, reached, or is taken."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import endpoint, in_order, is_admissible, is_loopback
from d8mesh.edge.network.cards import address_of, is_among, is_bridge, names_of
from d8mesh.edge.network.machine import host_name, machine_id
from d8mesh.edge.network.ports import bind, is_taken_unseen, port_holder
from d8mesh.edge.network.watch import adapters
from d8mesh.errors import BrokerUnavailableError

__all__ = [
    "InterfaceAddress",
    "Way",
    "ask_health",
    "bind",
    "find_way",
    "find_way_by_url",
    "first_reachable",
    "host_name",
    "is_taken_unseen",
    "machine_id",
    "own_names",
    "port_holder",
    "unknown_interfaces",
    "usable_addresses",
]

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
            address, names = address_of(ip), names_of(adapter, ip)
            if not is_admissible(address) or address.lower().startswith("fe80:"):
                continue
            is_asked_for = is_among((*names, address), interfaces)
            if is_asked_for or (not interfaces and not is_bridge(names)):
                found.add(InterfaceAddress(names[0], address))
    if not interfaces:
        found = {each for each in found if not is_loopback(each.address)} or found
    return tuple(sorted({each for each in found if ":" not in each.address} or found))


def unknown_interfaces(interfaces: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names and addresses that this machine does not have now."""
    known = set[str]()
    for adapter in adapters():
        for ip in adapter.ips:
            known |= {*names_of(adapter, ip), address_of(ip)}
    return tuple(name for name in interfaces if not is_among([name], known))


def own_names() -> frozenset[str]:
    """Return the names and addresses under which this machine may be called.

    In the form of `core.protocol.addresses.host_of`: lower case, no brackets, no port. Asks no
    name service and takes 0.1 ms; addresses change, so don't keep it for long.
    """
    names = {socket.gethostname().lower().rstrip(".")}
    names |= {name.partition(".")[0] for name in names}
    names |= {f"{name.partition('.')[0]}.local" for name in names}
    for adapter in adapters():
        names |= {address_of(ip) for ip in adapter.ips}
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


def ask_health(url: str, *, deadline_s: float, key: str | None = None) -> dict[str, object]:
    """Return the JSON object of ``GET url/health``, whatever its status.

    Args:
        url: where a person said that an orchestrator is: it is given the key.
        deadline_s: for each wait.
        key: D8_MESH_KEY.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    import http.client  # slow to import, and most processes never need it

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=deadline_s)
    try:
        proof = {} if key is None else {"Authorization": f"Bearer {key}"}
        connection.request("GET", "/health", headers={"Accept": "application/json", **proof})
        body = json.loads(connection.getresponse().read(MAX_HEALTH_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BrokerUnavailableError(f"no orchestrator answers at {url}: {error}") from error
    finally:
        connection.close()
    if isinstance(body, dict) and body.get("code") == "access.token":
        which = "another D8_MESH_KEY than this machine" if key else "a D8_MESH_KEY, set it here too"
        raise BrokerUnavailableError(f"the orchestrator at {url} has {which}")
    if not isinstance(body, dict) or not isinstance(body.get("broker_port"), int):
        raise BrokerUnavailableError(f"what answers at {url} is no orchestrator")
    return body


def find_way_by_url(url: str, *, deadline_s: float, key: str | None = None) -> Way:
    """Return the best way to the orchestrator whose REST is at `url`; see `ask_health`.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    port = ask_health(url, deadline_s=deadline_s, key=key)["broker_port"]
    assert isinstance(port, int)
    host = urlsplit(url).hostname or ""
    found = first_reachable([(host, port)], deadline_s=deadline_s)
    return Way(url) if found is None else Way(endpoint(*found))
