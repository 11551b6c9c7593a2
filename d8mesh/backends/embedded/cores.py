"""How many cores are free for a model: its threads spin, and spoil each other beside other work.

On two cores, one of them busy with something else, two threads make a third of the tokens that one
makes (`docs/MODELS.md`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: So long the processors are watched: shorter catches one blink of another program.
SAMPLE_S: Final = 0.2
#: So much of a core others may use: a thread too few costs less than one that is held up.
SHARED_CORE: Final = 0.25
#: Where the bound of a container stands: cgroup 2, then cgroup 1.
_CGROUP_2: Final = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_1_PERIOD: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_STAT: Final = Path("/proc/stat")
_SIBLINGS: Final = Path("/sys/devices/system/cpu")


def threads_now() -> int:
    """Return with how many threads a model runs best now: at least 1. Takes `SAMPLE_S`."""
    return threads_for(cores=machine_cores(), allowed=allowed_cores(), busy=busy_cores())


def threads_for(*, cores: int, allowed: float, busy: float) -> int:
    """Return the cores that nobody uses, at least 1; of one a quarter may be used.

    Args:
        cores: of the machine.
        allowed: how many of them this process may use.
        busy: how many of them all programs use.
    """
    return max(1, int(min(allowed, cores - busy) + SHARED_CORE))


def machine_cores() -> int:
    """Return how many cores the machine has; two threads of one core count once."""
    return _whole_cores(range(os.cpu_count() or 1))


def allowed_cores() -> float:
    """Return how many cores this process may use: its affinity, the bound of its container."""
    try:
        ours = os.sched_getaffinity(0)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):  # macOS, Windows
        return float(machine_cores())
    return min(float(_whole_cores(ours)), _container_cores())


def busy_cores() -> float:
    """Return how many cores all programs of this machine use together."""
    before = _busy_and_all()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    time.sleep(SAMPLE_S)
    after = _busy_and_all() or before
    passed = after[1] - before[1]
    share = (after[0] - before[0]) / passed if passed > 0 else 0.0
    return min(max(share, 0.0), 1.0) * (os.cpu_count() or 1)


def _whole_cores(ours: Iterable[int]) -> int:
    """Return on how many cores these processors are: twins share one core's arithmetic."""
    cores = set()
    for number in ours:
        told = _SIBLINGS / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            cores.add(told.read_text("ascii").strip())
        except (OSError, UnicodeError):
            cores.add(str(number))
    return max(1, len(cores))


def _container_cores() -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_2.read_text("ascii").split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int(_CGROUP_1.read_text("ascii"))
        period_us = int(_CGROUP_1_PERIOD.read_text("ascii"))
        return quota_us / period_us if quota_us > 0 else float("inf")
    return float("inf")


def _busy_and_all() -> tuple[float, float] | None:
    """Return the time that all processors were busy, and that they were there; None: not told."""
    if sys.platform == "win32":
        return _windows_times()
    with contextlib.suppress(OSError, ValueError):
        numbers = [int(part) for part in _STAT.read_text("ascii").split("\n")[0].split()[1:9]]
        idle = numbers[3] + numbers[4]  # waiting for a disk is no work
        return float(sum(numbers) - idle), float(sum(numbers))
    return None


def _windows_times() -> tuple[float, float] | None:
    import ctypes

    times = [ctypes.c_uint64() for _ in range(3)]  # idle; kernel, idle in it; user
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    if not kernel32.GetSystemTimes(*map(ctypes.byref, times)):
        return None
    idle, kernel, user = (float(each.value) for each in times)
    return kernel + user - idle, kernel + user
