"""The machine's network interfaces, asked for again only when they may have changed.

To ask takes about a millisecond, and every node does so every few seconds for as long as it
lives. Linux tells changes on a netlink socket, which costs nothing while nothing happens.

Source: rtnetlink(7)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Final

import ifaddr

#: Asked this often even if no change was told: some sandboxes have netlink and never tell.
RELOOK_S: Final = 10.0
#: Multicast groups of rtnetlink: links, IPv4 addresses, IPv6 addresses (linux/rtnetlink.h).
_NETLINK_GROUPS: Final = 0x1 | 0x10 | 0x100
#: Bytes of one datagram of notices; what is cut off does not matter.
_NOTICE_BYTES: Final = 65_536


class Adapters:
    """The interfaces as they are now. Thread: any."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: list[ifaddr.Adapter] = []
        self._known_until = 0.0
        self._bell: socket.socket | None = None
        self._process = 0

    def __call__(self) -> list[ifaddr.Adapter]:
        """Return all of them, with the addresses of each.

        Raises:
            OSError: the system does not say.
        """
        with self._guard:
            has_rung = self._has_rung()  # first: what changes after it is told again
            if has_rung or time.monotonic() >= self._known_until:
                self._known_until = 0.0
                self._known = list(ifaddr.get_adapters())
                self._known_until = time.monotonic() + RELOOK_S
            return self._known

    def close(self) -> None:
        """Listen no more; who asks afterwards begins anew."""
        with self._guard:
            self._hang_up()
            self._process = 0

    def _has_rung(self) -> bool:
        """True if something has changed, or nobody would say so."""
        if self._process != os.getpid():  # a fork would read the notices of its parent
            self._process = os.getpid()
            self._hang_up()
            self._bell = _subscribe()
            return True
        if self._bell is None:
            return True
        has_rung = False
        while True:
            try:
                self._bell.recv(_NOTICE_BYTES)
            except BlockingIOError:
                return has_rung
            except OSError:  # more notices than fit, or the socket is of no use any more
                self._hang_up()
                self._bell = _subscribe()
                return True
            has_rung = True

    def _hang_up(self) -> None:
        if self._bell is not None:
            self._bell.close()
            self._bell = None


def _subscribe() -> socket.socket | None:
    """Return a socket that hears of every change; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    bell = None
    with contextlib.suppress(OSError):
        bell = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        bell.bind((0, _NETLINK_GROUPS))
        return bell
    if bell is not None:
        bell.close()
    return None


#: Those of this process.
adapters: Final = Adapters()
atexit.register(adapters.close)
