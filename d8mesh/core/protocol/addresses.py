"""Which addresses may take part, in which order to try them, and which Hosts are ours.

Pure: no look-ups, no sockets. Whether an address answers is `edge.network`'s to find out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from d8mesh.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
#: Addresses of one node that are tried; what advertises more is odd, or means harm.
MAX_CANDIDATES: Final = 16

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Loopback, private (RFC 1918), link-local (RFC 3927, 4291) and unique local (RFC 4193).
#: A table of our own: what `is_private` says changes between Python versions, and it takes
#: in blocks that are no LAN. Not here: 100.64.0.0/10 (RFC 6598). Tailscale uses it, but a
#: provider's other customers stand behind the same addresses, and without a key whoever
#: is let in may run tasks; such meshes belong in key mode, with D8_ALLOW_PUBLIC.
_INSIDE: Final[tuple[_IpNetwork, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fe80::/10",
        "fc00::/7",
    )
)
#: Services of cloud hosts at link-local addresses (metadata, credentials, DNS, time): no
#: machine of a mesh, and nothing that a rogue announcement may make us talk to.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.169.253",
        "169.254.169.123",
        "169.254.170.2",
        "fd00:ec2::254",
    )
)
#: Addresses that a Host header may name beside our own: a container's published port is asked by
#: the address of the machine that it is on, which the container does not know. 100.64.0.0/10
#: (RFC 6598, Tailscale) is no public address either. An address cannot be rebound by DNS, but a
#: public one that is not ours was meant for somebody else.
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
#: Names of the machine that a container is on; `.internal` is resolved by no public DNS.
_CONTAINER_HOSTS: Final = frozenset(
    {"host.docker.internal", "gateway.docker.internal", "host.containers.internal"}
)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{1,5}))?")
_ENDPOINT: Final = re.compile(
    r"(?:tcp://)?(?:\[([0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,32})?)\]|([A-Za-z0-9_.-]{1,253})):([0-9]{1,5})"
    r"(?:\?key=([0-9a-f]{64}))?",
    re.ASCII,
)


def is_admissible(address: str) -> bool:
    """Return whether a peer of this address may take part: loopback, private, link-local.

    Args:
        address: IPv4 or IPv6 in text, in brackets or with a zone (``%eth0``) or neither;
            IPv4 mapped into IPv6 counts as that IPv4. A name is never admissible.
    """
    found = _parse(address)
    if found is None or found in _METADATA:
        return False
    return any(found.version == network.version and found in network for network in _INSIDE)


def is_loopback(address: str) -> bool:
    """Return whether this is an address, or the name, of the same machine only."""
    found = _parse(address)
    return address == "localhost" if found is None else found.is_loopback


def is_address(host: str) -> bool:
    """Return whether this is an address of any kind, and not a name."""
    return _parse(host) is not None


def candidates(advertised: Iterable[str], *, own: Collection[str]) -> tuple[str, ...]:
    """Return the addresses to try for a node, once each, at most MAX_CANDIDATES.

    The likeliest come first: loopback, IPv4, IPv6.

    Args:
        advertised: what the node says of itself; what is not admissible is left out.
        own: this machine's addresses that are in use. A node that has one of them is on
            this machine: 127.0.0.1 comes first. Any other's loopback is not ours.
    """
    ours = {parsed for parsed in map(_parse, own) if parsed is not None}
    usable = dict.fromkeys(address for address in advertised if is_admissible(address))
    ordered = sorted(usable, key=lambda address: (not is_loopback(address), ":" in address))
    if any(_parse(address) in ours for address in ordered):
        ordered = list(dict.fromkeys([LOOPBACK, *ordered]))
    else:
        ordered = [address for address in ordered if not is_loopback(address)]
    return tuple(ordered[:MAX_CANDIDATES])


def endpoint(address: str, port: int, scheme: str = "tcp") -> str:
    """Return the endpoint of an address: ZeroMQ's, as `parse_endpoint` reads it, or a URL."""
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def parse_endpoint(text: str) -> tuple[str, int, bytes | None]:
    """Return address (or name), port and key of ``[tcp://]ADDRESS:PORT[?key=64 HEX DIGITS]``.

    Raises:
        ConfigError: it is not of that form, an IPv6 address stands without its brackets,
            or the port is not 1 to 65535.
    """
    match = _ENDPOINT.fullmatch(text)
    port = int(match[3]) if match is not None else 0
    if match is None or not 0 < port < 65536 or (match[1] and _parse(match[1]) is None):
        raise ConfigError(
            f"{text[:80]!r} is no address: expected ADDRESS:PORT or [IPV6]:PORT, and after it at "
            "most ?key= and the 64 hex digits of the orchestrator's public key"
        )
    return match[1] or match[2], port, bytes.fromhex(match[4]) if match[4] else None


def host_of(header: str) -> str | None:
    """Return the host of a Host header, or None if the header is malformed (HTTP 400).

    Returns:
        A name in lower case without the final dot, or an address in its one usual form
        without brackets.
    """
    match = _HOST.fullmatch(header)
    if match is None or (match[2] is not None and int(match[2]) > 65535):
        return None
    host = match[1].lower().removesuffix(".")
    found = _parse(host)
    if found is not None:
        return str(found)
    is_name = all(0 < len(label) < 64 and label[0] != "[" for label in host.split("."))
    return host if is_name else None


def host_is_allowed(host: str, own_names: Collection[str], allowed: Collection[str]) -> bool:
    """Return whether a request for `host` is for us; if not, it is foreign (HTTP 403).

    Against DNS rebinding: our own addresses and names, loopback and ``localhost``, private
    addresses (a name is what can be rebound, an address is not), names of a single label (which
    no public DNS resolves), those by which containers call their machine, and those of
    D8_ALLOWED_HOSTS, exactly.

    Args:
        host: as `host_of` returns it.
        own_names: as `edge.network.own_names` returns them.
        allowed: D8_ALLOWED_HOSTS, as written: names or addresses without a port.
    """
    if host in own_names or any(host_of(name) == host for name in map(_bracketed, allowed)):
        return True
    found = _parse(host)
    if found is None:
        return "." not in host or host in _CONTAINER_HOSTS
    return is_admissible(host) or (found.version == _SHARED.version and found in _SHARED)


@lru_cache(maxsize=1024)  # the same few are asked about with every request
def _parse(address: str) -> _IpAddress | None:
    text = address[1:-1] if address[:1] == "[" and address[-1:] == "]" else address
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and name[:1] != "[" else name
