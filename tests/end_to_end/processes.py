"""Looking at and killing the processes of a mesh under test (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: How long events may take on a loaded, slow machine.
PATIENCE_S: Final = 60.0


def children_of(pid: int) -> dict[int, list[str]]:
    """Return the direct children of a process, each with its command line."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text("utf-8", "replace")
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                    found[int(entry.name)] = line.split("\0")
    return found


def child_running(pid: int, argument: str) -> int | None:
    """Return the process id of the child that was started with `argument`."""
    for child, command in children_of(pid).items():
        if argument in command:
            return child
    return None


def kill(pid: int) -> None:
    """End a process as a power failure would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(is_so: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait for an event that can only be looked for."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.02)
