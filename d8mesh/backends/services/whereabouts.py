"""Where an LLM service is: an id that all workers agree on, and a name for people."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import is_address, is_loopback
from d8mesh.edge.network import host_name, machine_id, own_names

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The place of a service."""

    #: the same for every worker that reaches it there
    id: str
    #: the host, for people
    machine: str
    #: it is on this machine
    is_local: bool


def whereabouts(url: str, kind: str, *, own: Collection[str] | None = None) -> Whereabouts:
    """Return where the service at `url` is; looks its name up, which may take a while.

    On this machine the id is made of this machine's own, elsewhere of the address that the name
    stands for. A service without an address is in this process.

    Args:
        own: names and addresses of this machine; None asks for them.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host:
        return Whereabouts(f"{machine_id()}:{kind}", host_name(), is_local=True)
    port = parts.port or _PORTS.get(parts.scheme, 80)
    address = _address_of(host)
    names = own_names() if own is None else own
    if is_loopback(host) or is_loopback(address) or {host, address} & set(names):
        return Whereabouts(f"{machine_id()}:{port}", host_name(), is_local=True)
    return Whereabouts(f"{address}:{port}", host, is_local=False)


def _address_of(host: str) -> str:
    """Return the address of a name, the same one for all who ask; the name if there is none."""
    if is_address(host):
        return host
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return host
    return min(found, key=lambda address: (":" in address, address))
