"""Other clocks for a process under test, read from files while it runs.

Python imports this by itself at its start if the folder is on PYTHONPATH. ``SHIFTED_CLOCKS``
names a folder; the file there that is named for the process (``broker``, ``worker``) holds two
numbers: seconds that the wall clock is ahead, and seconds that the machine has slept.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_real_time, _real_gettime = time.time, time.clock_gettime
_words = {word.lstrip("_") for word in sys.orig_argv}
_file = Path(os.environ.get("SHIFTED_CLOCKS", "")) / (
    next((role for role in ("broker", "worker") if role in _words), "other")
)


def _shift(which: int) -> float:
    try:
        return float(_file.read_text("ascii").split()[which])
    except (OSError, IndexError):
        return 0.0


def _time() -> float:
    return _real_time() + _shift(0)


def _gettime(clock: int) -> float:
    return _real_gettime(clock) + (_shift(1) if clock == time.CLOCK_BOOTTIME else 0.0)


if "SHIFTED_CLOCKS" in os.environ and sys.platform == "linux":
    time.time, time.clock_gettime = _time, _gettime
