"""Processor time and memory of processes, on every platform."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

#: How long a child that is looked for may take to appear.
FIND_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Node:
    """One process of the mesh."""

    name: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Return the seconds of processor time it has used, all threads together."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(self.process.memory_info().rss)

    def peak_rss_bytes(self) -> int | None:
        """Return the most resident memory it ever had; None where the system does not tell."""
        told = self.process.memory_info()
        if hasattr(told, "peak_wset"):  # Windows
            return int(told.peak_wset)
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _text_of(status), re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def exact_cpu_s(self) -> float:
        """Return its processor time to the nanosecond where the system tells it.

        Of the threads that live now (Linux): for nodes that start and end none meanwhile.
        """
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        spent = [text.split()[0] for text in map(_text_of, tasks) if text]
        return sum(map(int, spent)) / 1e9 if spent else self.cpu_s()

    def pss_bytes(self) -> int | None:
        """Return its proportional share of memory; None where the system does not tell."""
        told = self.process.memory_full_info()
        return int(told.pss) if hasattr(told, "pss") else None

    def be_nice(self, level: int) -> None:
        """Give it, with all its threads, a lower priority (`level`: POSIX, 1 to 19)."""
        if sys.platform == "win32":
            self.process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
            return
        for thread in self.process.threads():  # on Linux each has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread.id, level)


def node(pid: int, name: str) -> Node:
    """Return the process `pid`."""
    return Node(name, psutil.Process(pid))


def child_of(pid: int, command: str) -> Node:
    """Return the child of `pid` that was started with the argument `command`.

    Raises:
        LookupError: there is none within `FIND_S`.
    """
    until = time.monotonic() + FIND_S
    while time.monotonic() < until:
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if command in child.cmdline():
                    return Node(command.lstrip("_"), child)
        time.sleep(0.01)
    raise LookupError(f"process {pid} has no child {command}")


def kill_tree(pid: int) -> None:
    """End a process and all its children at once, as kill -9 of the group would."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    until = time.monotonic() + FIND_S
    while any(map(_lives, family)) and time.monotonic() < until:
        time.sleep(0.001)


def _lives(process: psutil.Process) -> bool:
    """A zombie is dead: orphans stay as such until the system's first process looks at them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def raise_descriptor_limit(wanted: int) -> int:
    """Let this process and its children open `wanted` files; return how many they may."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""


def is_linux() -> bool:
    """Tell whether the details of Linux's /proc are there."""
    return Path("/proc/self/smaps_rollup").exists()
