"""What a system calls its network cards, and which of them lead to no LAN.

Bridges of containers and virtual machines, and links that the system makes for itself, are told
by their names: their address ranges are ordinary private ones.

Source: `ifaddr` (on Windows an adapter's own `nice_name` is its description, and the name that
Windows shows is that of its addresses), networksetup(8) and ifconfig(8) of macOS
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Final

import ifaddr

#: Not every veth: a container's own way out may be called so.
_LINUX: Final = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{6,}|virbr\d+(-nic)?|veth[0-9a-f]{7,}|vmnet\d+"
    r"|(podman|cni|lxcbr|lxdbr|incusbr)\d+|cali[0-9a-f]{8,}"
)
#: bridge0 is the Thunderbolt bridge, which may be somebody's LAN; those from 100 on are made for
#: virtual machines and shared connections. awdl and llw: AirDrop; utun: tunnels; ap: hotspot.
_MACOS: Final = re.compile(
    r"bridge[1-9]\d{2,}|vmenet\d+|vmnet\d+|awdl\d+|llw\d+|utun\d+|ap[1-9]\d*|anpi\d+|gif\d+|stf\d+"
    r"|ipsec\d+|feth\d+"
)
#: An external switch of Hyper-V is a LAN; these are the ones that Windows makes for itself.
_WINDOWS: Final = re.compile(
    r"vEthernet \((WSL|Default Switch|Standardswitch|nat|.*Internal.*|Docker).*\)"
    r"|VirtualBox Host-Only.*|VMware Network Adapter.*|Bluetooth.*|Teredo.*|isatap.*",
    re.IGNORECASE,
)
_BRIDGES: Final = {"win32": _WINDOWS, "darwin": _MACOS}


def names_of(adapter: ifaddr.Adapter, ip: ifaddr.IP) -> tuple[str, ...]:
    """Return all names of the card that an address belongs to, first the one that people see."""
    shown = str(getattr(ip, "nice_name", "") or "") if sys.platform == "win32" else ""
    others = (adapter.nice_name, getattr(adapter, "name", ""), getattr(ip, "nice_name", ""))
    # On Windows `name` is bytes: a GUID that nobody would write.
    return tuple(dict.fromkeys(name for name in (shown, *others) if name and isinstance(name, str)))


def is_bridge(names: Iterable[str]) -> bool:
    """Tell whether a card of these names leads to containers, virtual machines or a tunnel."""
    pattern = _BRIDGES.get(sys.platform, _LINUX)
    return any(pattern.fullmatch(name) for name in names)


def is_among(names: Iterable[str], wanted: Iterable[str]) -> bool:
    """Tell whether one of the names is wanted, however its letters are written."""
    return not {_folded(name) for name in wanted}.isdisjoint(_folded(name) for name in names)


def address_of(ip: ifaddr.IP) -> str:
    """Return an address as text, without its zone."""
    return ip.ip if isinstance(ip.ip, str) else ip.ip[0]


def _folded(name: str) -> str:
    """Windows tells "Ethernet" from "ethernet" as little as a person does."""
    return unicodedata.normalize("NFC", name).casefold()
