"""Whether what a service is asked leaves the LAN: by its address, whoever runs it.

A prompt that leaves is in the cloud for the mesh: it goes there only where its task allows that.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import is_address, is_admissible, is_loopback
from d8mesh.edge.network import own_names
from d8mesh.errors import BackendUnavailableError

#: Bits that the addresses of one IPv6 link share (RFC 4291): a LAN's own may be public ones.
_LINK_BITS: Final = 64


def leaves_lan(url: str, *, own: Collection[str] | None = None) -> bool:
    """Return whether a request to `url` may leave the LAN; looks its name up, which takes a while.

    One of several addresses outside is enough. A name that stands for no address leads nowhere.

    Args:
        own: names and addresses of this machine; None asks for them.
    """
    host = urlsplit(url).hostname or ""
    if not host or is_loopback(host) or is_admissible(host):
        return False
    names = own_names() if own is None else own
    if host in names:
        return False
    addresses = {host} if is_address(host) else _addresses_of(host)
    return not all(is_admissible(each) or _is_beside(each, names) for each in addresses)


def outside_error(service: str, url: str) -> BackendUnavailableError:
    """Return the refusal of an address outside, which `D8_CLOUD` does not allow."""
    return BackendUnavailableError(
        f"{service} at {url} is outside this LAN, where prompts may not go: D8_CLOUD=overflow or "
        "yes on this worker lets tasks go there that allow it"
    )


def _addresses_of(host: str) -> set[str]:
    try:
        return {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


def _is_beside(address: str, own: Collection[str]) -> bool:
    """Return whether this machine has this address, or one of the same IPv6 link."""
    return address in own or _link_of(address) in (set(map(_link_of, own)) - {None})


def _link_of(address: str) -> int | None:
    try:
        return int(ipaddress.IPv6Address(address.partition("%")[0])) >> _LINK_BITS
    except ValueError:
        return None
