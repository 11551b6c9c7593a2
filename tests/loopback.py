"""Keeps the traffic of the tests on loopback: whatever else a test tries is refused and noted.

What this process does is looked at where Python hands it to the system (and to ZeroMQ, which
is not Python); of children it is looked at that they are told to stay on loopback, or run on a
host of the test's own (`tests.end_to_end.hosts`, marked ``namespace``).
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import itertools
import os
import re
import socket
import subprocess
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, Final

import zmq

#: Interfaces that a child may be told: loopback, or a card that there is not.
CHILD_INTERFACES: Final = re.compile(r"127\.0\.0\.\d+|no-[a-z-]+")
#: Programs that are d8mesh, beside ``-m d8mesh`` (the launcher is tested with a stand-in of it).
COMMANDS: Final = frozenset({"d8mesh", "d8mesh.exe"})
_IP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_JOINS: Final = {
    (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP),
    (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP),
}


class Fence:
    """Refuses what would leave this machine; `broken` tells what was tried."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        #: the test that runs now has hosts of its own; None: no test runs
        self.has_namespace: bool | None = None
        self._undo: list[Callable[[], None]] = []

    def raise_up(self) -> None:
        """Stand in the way from now on."""
        for name, check in (
            ("connect", self._check_target),
            ("connect_ex", self._check_target),
            ("sendto", self._check_sendto),
            ("sendmsg", self._check_sendmsg),
            ("bind", self._check_target),
            ("setsockopt", self._check_option),
        ):
            self._before(socket.socket, name, check, getattr(_socket.socket, name))
        for name in ("connect", "bind"):
            self._before(zmq.Socket, name, self._check_endpoint, getattr(zmq.Socket, name))
        start = subprocess.Popen.__init__
        self._before(subprocess.Popen, "__init__", self._check_child, start)
        self._put(socket, "getaddrinfo", _local_only(socket.getaddrinfo))

    def take_down(self) -> None:
        """Let everything pass again."""
        while self._undo:
            self._undo.pop()()

    def _before(self, owner: Any, name: str, check: Callable[..., None], original: Any) -> None:
        def checked(this: Any, *arguments: Any, **named: Any) -> Any:
            check(this, *arguments, **named)
            return original(this, *arguments, **named)

        self._put(owner, name, checked)

    def _put(self, owner: Any, name: str, new: Any) -> None:
        if name in vars(owner):
            old = vars(owner)[name]
            self._undo.append(lambda: setattr(owner, name, old))
        else:
            self._undo.append(lambda: delattr(owner, name))
        setattr(owner, name, new)

    def _refuse(self, what: str) -> None:
        where = "".join(traceback.format_stack(limit=8)[:-3])
        self.broken.append(f"{what}\n{where}")
        raise OSError(errno.EPERM, f"the tests stay on loopback: {what}")

    # ------------------------------------------------------------ sockets

    def _check_target(self, this: socket.socket, address: Any, *_: Any) -> None:
        if this.family not in _IP_FAMILIES:
            return
        host = str(address[0])
        if is_multicast(host):
            if not _sends_on_loopback(this):
                self._refuse(f"multicast to {host} on a card")
        elif not is_here(host):
            self._refuse(f"{this.type.name} to or on {host}")

    def _check_sendto(self, this: socket.socket, data: Any, *rest: Any) -> None:
        self._check_target(this, rest[-1])

    def _check_sendmsg(self, this: socket.socket, buffers: Any, *rest: Any) -> None:
        if len(rest) == 3 and rest[2] is not None:
            self._check_target(this, rest[2])

    def _check_option(self, this: socket.socket, level: int, option: int, *rest: Any) -> None:
        value = rest[0]
        if (level, option) not in _JOINS or not isinstance(value, bytes):
            return
        if level == socket.IPPROTO_IP:
            card = str(ipaddress.ip_address(value[4:8]))
            if not is_here(card) or card == "0.0.0.0":
                self._refuse(f"a multicast group joined on {card}")
        elif not _is_loopback_card(int.from_bytes(value[16:20], "little")):
            self._refuse("an IPv6 multicast group joined on a card")

    def _check_endpoint(self, this: Any, endpoint: str, *_: Any) -> None:
        match = re.match(r"tcp://\[?([^\]]*?)\]?:[^:]*$", endpoint)
        host = "" if match is None or match[1] == "*" else match[1]
        if _is_address(host) and not is_here(host):
            self._refuse(f"ZeroMQ to or on {host}")

    # ------------------------------------------------------------ children

    def _check_child(self, this: Any, argv: Any, *_: Any, **named: Any) -> None:
        if self.has_namespace is None or isinstance(argv, (str, bytes)):
            return
        words = [os.fsdecode(word) for word in argv]
        if words[:3] == ["ip", "netns", "exec"]:
            if not self.has_namespace:
                self._refuse("a host of its own in a test that is not marked `namespace`")
            return
        is_ours = any(pair == ("-m", "d8mesh") for pair in itertools.pairwise(words))
        is_ours = is_ours or not COMMANDS.isdisjoint(PurePath(word).name for word in words[:3])
        is_ours = is_ours and not {"--version", "--help"} & set(words)  # those only print
        env: Mapping[str, str] = os.environ if named.get("env") is None else named["env"]
        told = [word.partition("=")[2] for word in words if "D8_INTERFACES=" in word]
        interfaces = told[-1].partition("=")[2] if told else env.get("D8_INTERFACES", "")
        if is_ours and not CHILD_INTERFACES.fullmatch(interfaces):
            self._refuse(f"a d8mesh child with D8_INTERFACES={interfaces!r}")


def is_here(host: str) -> bool:
    """Tell whether a socket to, or on, this address stays on this machine."""
    if host in ("", "localhost"):
        return True
    with suppress(ValueError):
        found = ipaddress.ip_address(host.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return found.is_loopback or found.is_unspecified
    return False


def is_multicast(host: str) -> bool:
    """Tell whether this is a group, for whose members it depends on the card."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_multicast
    return False


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    return False


def _sends_on_loopback(this: socket.socket) -> bool:
    if this.family == socket.AF_INET:
        card = this.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)
        return ipaddress.ip_address(card).is_loopback
    return _is_loopback_card(this.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF))


def _is_loopback_card(index: int) -> bool:
    with suppress(OSError):
        return socket.if_indextoname(index).startswith("lo")
    return False


def _local_only(resolve: Any) -> Any:
    """Ask no name service: a name that is not this machine's is nobody's."""

    def resolved(host: Any, *arguments: Any, **named: Any) -> Any:
        text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        if text is not None and not _is_address(text) and text not in ("", "localhost"):
            text.encode("idna")  # raises UnicodeError for what is no name, as the system's does
            raise socket.gaierror(socket.EAI_NONAME, "the tests ask no name service")
        return resolve(host, *arguments, **named)

    return resolved
