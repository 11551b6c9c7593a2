"""Descriptors of connections: how many a process may have, and whose one of ZeroMQ's is.

Source: https://libzmq.readthedocs.io/en/latest/zmq_socket_monitor.html, getrlimit(2)
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from typing import Final

#: Descriptors that are not connections: files of the store, logs, discovery.
BROKER_DESCRIPTORS: Final = 256


def raise_descriptor_limit(connections: int) -> None:
    """Let this process have the descriptors for so many connections, if it may: each takes two."""
    if sys.platform == "win32":
        return
    import resource

    wanted = 2 * connections + BROKER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS may have a lower bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections(wanted: int) -> int:
    """Return for how many of so many connections this process has descriptors.

    ZeroMQ's thread never rests while one is waiting that it has no descriptor for.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - BROKER_DESCRIPTORS) // 2))


def duplicate(descriptor: int) -> tuple[socket.socket | None, str]:
    """Return a socket of its own for a descriptor of ZeroMQ's, and whose it is.

    The number may be a file's by now, which must not be closed: that lets go of SQLite's locks.
    """
    with contextlib.suppress(OSError):  # it has ended
        if sys.platform != "win32" and not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None, ""
        copy = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
        # Made anew, it knows its family: at a port of all addresses everybody comes by IPv6.
        handle = socket.socket(fileno=copy.detach())
        with contextlib.suppress(OSError):
            if handle.family in (socket.AF_INET, socket.AF_INET6):  # else it is another's by now
                return handle, str(handle.getpeername()[0]).removeprefix("::ffff:")
        handle.close()
    return None, ""
