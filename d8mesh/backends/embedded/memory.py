"""How much memory a model may have here: what is larger would have the machine read its disk."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

#: The bound of a container: cgroup 2, then cgroup 1.
_BOUNDS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def machine_bytes() -> int | None:
    """Return the memory of this machine, or of the container that this is; None: nobody tells."""
    found = _windows_bytes() if sys.platform == "win32" else _posix_bytes()
    for path in _BOUNDS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            bound = int(path.read_text("ascii"))
            found = bound if found is None else min(found, bound)
    return found


def _posix_bytes() -> int | None:
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return found if found > 0 else None


def _windows_bytes() -> int | None:
    import ctypes

    class MemoryStatus(ctypes.Structure):
        """Windows' MEMORYSTATUSEX."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    return int(status.total) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
