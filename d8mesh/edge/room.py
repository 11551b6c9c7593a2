"""How much room this machine has: memory for a model, and disk where Ollama keeps its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

#: Where an Ollama that was installed as a service of the system keeps its models, beside the
#: folder of the user.
SYSTEM_FOLDERS: Final = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models")
#: Where the bound of a container stands: cgroup 2, then cgroup 1.
CONTAINER_BOUNDS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory_bytes(*, bounds: Iterable[Path] = CONTAINER_BOUNDS) -> int | None:
    """Return this machine's memory; None where it does not tell. Graphics memory is not in it.

    Args:
        bounds: files that may say how much of it a container has.
    """
    if sys.platform == "win32":
        return _windows_memory_bytes()
    found: int | None = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in bounds:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            bound = int(path.read_text("ascii"))
            found = bound if found is None else min(found, bound)
    return found


def models_folder(env: Mapping[str, str], *, system: Iterable[str] = SYSTEM_FOLDERS) -> Path:
    """Return where Ollama keeps its models: OLLAMA_MODELS, else the first usual folder there is.

    Without any it is the user's, which the first pull makes.
    """
    if told := env.get("OLLAMA_MODELS", "").strip():
        return Path(told)
    own = Path("~/.ollama/models")
    with contextlib.suppress(RuntimeError):  # a user without a home
        own = own.expanduser()
    return next((each for each in (own, *map(Path, system)) if each.is_dir()), own)


def disk_free_bytes(folder: Path) -> int | None:
    """Return what is free on the disk of a folder, which need not be there yet."""
    for each in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(each).free
    return None


def _windows_memory_bytes() -> int | None:
    """Source: https://learn.microsoft.com/windows/win32/api/sysinfoapi/ GlobalMemoryStatusEx."""

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 6),
        ]

    status = Status(length=ctypes.sizeof(Status))
    is_told = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(  # type: ignore[attr-defined,unused-ignore]
        ctypes.byref(status)
    )
    return int(status.total) if is_told else None
