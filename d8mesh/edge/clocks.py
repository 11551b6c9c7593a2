"""How long this machine has slept: the difference of a clock that goes on and one that stops.

Source: https://man7.org/linux/man-pages/man2/clock_gettime.2.html, clock_gettime(3) of macOS,
https://learn.microsoft.com/windows/win32/api/realtimeapiset (QueryUnbiasedInterruptTime)
"""

from __future__ import annotations

import sys
import time


def slept_s() -> float:
    """Return seconds slept since the system started, and a constant; 0 where nothing tells.

    Only differences of two calls mean something.
    """
    if sys.platform == "win32":
        import ctypes

        awake = ctypes.c_ulonglong()  # of 100 ns
        ctypes.windll.kernel32.QueryUnbiasedInterruptTime(ctypes.byref(awake))
        return time.monotonic() - awake.value / 1e7
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC) - time.monotonic()
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return 0.0
