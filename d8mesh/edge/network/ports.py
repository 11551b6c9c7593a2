"""TCP ports of this machine: bound, found taken, and who has them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: A program on this machine that listens accepts within a millisecond; without one the answer is
#: a refusal at once.
PORT_ACCEPT_S: Final = 0.25


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port, at once even if an earlier process was killed.

    Raises:
        OSError: the port is taken or the address is not this machine's.
    """
    if is_taken_unseen(host, port):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, reuse_option(), 1)
        if host == "::":
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        found.bind((host, port))
    except BaseException:  # also on Ctrl-C: what was taken is let go
        found.close()
        raise
    return found


def reuse_option() -> int:
    """Return the socket option that lets a port be bound again after a process was killed.

    On Windows SO_REUSEADDR would let two processes listen on the same port, and without an
    option another program could take a part of it.
    """
    name = "SO_EXCLUSIVEADDRUSE" if sys.platform == "win32" else "SO_REUSEADDR"
    return int(getattr(socket, name))


def is_taken_unseen(host: str, port: int) -> bool:
    """Tell whether a port is taken and a bind to it would succeed all the same.

    So it is on macOS and BSD: all addresses can be bound beside a program that listens on
    127.0.0.1 alone, and the other way round, and connections then reach that one. Linux refuses
    such a bind, and Windows does with SO_EXCLUSIVEADDRUSE.

    Args:
        host: the address that is to be listened on; 0.0.0.0, :: or * for all.
    """
    if port == 0 or str(sys.platform) in ("linux", "win32"):
        return False
    hosts = ("127.0.0.1", "::1") if host in ("0.0.0.0", "::", "*") else (host,)
    for each in hosts:
        with contextlib.suppress(OSError):
            with socket.create_connection((each, port), timeout=PORT_ACCEPT_S):
                return True
    return False


def port_holder(port: int) -> str | None:
    """Return who listens on a TCP port, as "name (process N)", if this machine tells."""
    if str(sys.platform) == "linux":
        return _holder_by_proc(port)
    return next(_holders_by_psutil(port), None)


def _holder_by_proc(port: int) -> str | None:
    inodes = _listening_inodes(port)
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (process / "fd").iterdir():
                    if descriptor.readlink().name in inodes:
                        name = (process / "comm").read_text("utf-8", "replace").strip()
                        return f"{name} (process {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return inodes


def _holders_by_psutil(port: int) -> Iterator[str]:
    """Yield who listens there, of the processes that this user may look at; needs `psutil`."""
    try:
        import psutil  # no dependency: whoever has it is told more
    except ImportError:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            for each in process.net_connections(kind="tcp"):
                if each.status == psutil.CONN_LISTEN and each.laddr.port == port:
                    yield f"{process.name()} (process {process.pid})"
