"""What the system tells of a TCP connection: how much has come in, and whether the peer reads.

Linux and macOS tell; elsewhere nothing is known.

Source: tcp(7), ``linux/tcp.h``; ``netinet/tcp.h`` of macOS
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

_IS_LINUX: Final = sys.platform == "linux"
#: The option that tells (Linux: TCP_INFO, macOS: TCP_CONNECTION_INFO).
_INFO_OPTION: Final = {"linux": 11, "darwin": 0x106}.get(sys.platform)
#: Linux: last_data_recv at 52, bytes_acked and bytes_received at 120, notsent_bytes at 144.
_LINUX_INFO: Final = struct.Struct("=52xI64xQQ8xI")
#: macOS: snd_sbbytes at 32, txbytes at 64, rxbytes at 88.
_DARWIN_INFO: Final = struct.Struct("=32xI28xQ16xQ16x")


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a connection stands."""

    received_bytes: int  #: that have come in so far
    taken_bytes: int  #: of ours that have reached the peer so far
    unsent_bytes: int  #: of ours that wait in the system, as the peer takes none for now
    quiet_ms: int  #: since something came in


def traffic_of(connection: socket.socket) -> Traffic | None:
    """Return how a connection stands; None: the system does not tell."""
    if _INFO_OPTION is None:
        return None
    with contextlib.suppress(OSError, struct.error):
        form = _LINUX_INFO if _IS_LINUX else _DARWIN_INFO
        told = connection.getsockopt(socket.IPPROTO_TCP, _INFO_OPTION, form.size)
        if _IS_LINUX:
            quiet_ms, taken, received, unsent = _LINUX_INFO.unpack(told)
            return Traffic(received, taken, unsent, quiet_ms)
        unsent, sent, received = _DARWIN_INFO.unpack(told)
        return Traffic(received, max(0, sent - unsent), unsent, 0)
    return None


def has_left(connection: socket.socket) -> bool:
    """Return whether the peer has closed the connection, and nothing of it is unread."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
