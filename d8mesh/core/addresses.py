"""Which addresses may take part, and which Host headers are ours. Pure: no look-ups."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final

#: Tailscale and carrier-grade NAT (RFC 6598): not public, and people join machines that way.
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
#: Cloud metadata services: never a machine of a mesh.
_METADATA: Final = frozenset(
    {ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("fd00:ec2::254")}
)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{1,5}))?")


def is_admissible(address: str) -> bool:
    """Return whether a peer of this address may take part: private, link-local or loopback."""
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found in _METADATA or found.is_unspecified or found.is_multicast:
        return False
    if isinstance(found, ipaddress.IPv4Address) and found in _SHARED:
        return True
    return found.is_loopback or found.is_link_local or (found.is_private and not found.is_reserved)


def in_order(addresses: Iterable[str]) -> list[str]:
    """Return admissible addresses, the likeliest first: loopback, IPv4, then IPv6."""
    usable = dict.fromkeys(address for address in addresses if is_admissible(address))
    return sorted(usable, key=lambda address: (not is_loopback(address), ":" in address))


def is_loopback(address: str) -> bool:
    """Return whether this is an address of the same machine only."""
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def endpoint(address: str, port: int) -> str:
    """Return the ZeroMQ endpoint of an address."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def host_of(header: str) -> str | None:
    """Return the host of a Host header in lower case, or None if it is malformed."""
    match = _HOST.fullmatch(header)
    if match is None or (match[2] is not None and int(match[2]) > 65535):
        return None
    return match[1].strip("[]").lower().rstrip(".")


def host_is_allowed(host: str, own_names: Collection[str], allowed: Collection[str]) -> bool:
    """Return whether requests for `host` are for us (DNS rebinding: ``docs/SECURITY.md``).

    Allowed are our own addresses and names, ``localhost``, names of a single label (which
    no public DNS resolves), and those of D8_ALLOWED_HOSTS, exactly.
    """
    if host == "localhost" or host in own_names:
        return True
    if host in {name.lower().strip("[]") for name in allowed}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host
