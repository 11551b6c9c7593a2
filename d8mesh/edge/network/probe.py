"""Why an address cannot be reached, in words for people."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Final

#: A thread that a name service holds up is left to itself.
_LOOKER: Final = "d8-look"


def why_unreachable(host: str, port: int, *, deadline_s: float) -> str:
    """Return why ``host:port`` takes no connection; empty if it does.

    Takes `deadline_s` at most, also when the name service hangs. No connection is left open.
    """
    found: list[str] = []
    looker = threading.Thread(
        target=lambda: found.append(_look(host, port, deadline_s)), name=_LOOKER, daemon=True
    )
    try:
        looker.start()
    except RuntimeError:  # the interpreter is ending: no more threads
        return ""
    looker.join(deadline_s)
    return found[0] if found else f"no answer within {deadline_s:g} s"


def told(error: BaseException | None) -> str:
    """Return what an error of a connection means."""
    if isinstance(error, socket.gaierror):
        return "there is no host of that name"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused: nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "there is no way to that network"
    if isinstance(error, OSError):
        return error.strerror or str(error)[:200] or type(error).__name__
    return "" if error is None else f"what answers there is no orchestrator ({error!s:.200})"


def _look(host: str, port: int, deadline_s: float) -> str:
    until = time.monotonic() + deadline_s
    try:
        socket.create_connection((host, port), timeout=max(0.05, until - time.monotonic())).close()
    except OSError as error:
        return told(error)
    return ""
