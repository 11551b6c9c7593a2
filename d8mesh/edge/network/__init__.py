"""The machine's interfaces and ports: what can be listened on, reached, or is taken."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

from d8mesh.core.protocol.addresses import MAX_CANDIDATES, candidates, is_admissible, is_loopback
from d8mesh.edge.network.cards import address_of, is_among, is_bridge, names_of
from d8mesh.edge.network.machine import host_name, machine_id
from d8mesh.edge.network.ports import bind, is_taken_unseen, port_holder
from d8mesh.edge.network.watch import adapters

__all__ = [
    "InterfaceAddress",
    "bind",
    "first_reachable",
    "host_name",
    "is_taken_unseen",
    "machine_id",
    "own_names",
    "port_holder",
    "reachable_host",
    "unknown_interfaces",
    "usable_addresses",
]


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


def reachable_host(addresses: Sequence[str], port: int, *, deadline_s: float) -> str | None:
    """Return which address of a node accepts at `port` first; None: none does.

    All are tried side by side, 127.0.0.1 too if one of them is this machine's.
    """
    hosts = candidates(addresses, own=own_names())
    found = first_reachable([(host, port) for host in hosts], deadline_s=deadline_s)
    return None if found is None else found[0]


def first_reachable(
    targets: Sequence[tuple[str, int]], *, deadline_s: float
) -> tuple[str, int] | None:
    """Return the (address, port) that accepts a TCP connection first, or None.

    All are tried side by side, for at most `deadline_s` seconds; of several that accept at
    once the earlier one is taken. No connection is left open. A name among them is looked
    up first, for as long as the system's resolver takes; addresses cost no look-up.
    """
    until = time.monotonic() + deadline_s
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as open_sockets:
        for rank, (address, port) in enumerate(targets[:MAX_CANDIDATES]):
            attempt = _attempt(address, port)
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
                return targets[min(accepted)]
    return None


def _attempt(address: str, port: int) -> socket.socket | None:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        attempt = socket.socket(*found[:3])
    except OSError:
        return None
    attempt.setblocking(False)
    try:
        attempt.connect(found[4])
    except BlockingIOError:
        pass  # under way: the selector tells when it is decided
    except OSError:
        attempt.close()
        return None
    return attempt
