"""Waits that Ctrl-C ends everywhere.

On Windows a thread that waits for a lock, an event or another thread takes no signal until the
wait is over: so whoever may be the main thread waits in slices.
"""

from __future__ import annotations

import threading
import time
from typing import Final

#: The longest time for which Ctrl-C is not seen.
CTRL_C_S: Final = 0.5


def wait_for(happened: threading.Event, timeout_s: float | None = None) -> bool:
    """Wait for an event, for ever or `timeout_s` long; return whether it is set."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while not happened.wait(_slice(until)):
        if until is not None and time.monotonic() >= until:
            return happened.is_set()
    return True


def join(thread: threading.Thread, timeout_s: float | None = None) -> bool:
    """Wait for a thread's end, for ever or `timeout_s` long; return whether it has ended."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while thread.is_alive():
        if until is not None and time.monotonic() >= until:
            return False
        thread.join(_slice(until))
    return True


def _slice(until: float | None) -> float:
    return CTRL_C_S if until is None else min(CTRL_C_S, max(0.0, until - time.monotonic()))
