"""What the figures were measured on: processor, memory, disk, kernel, versions, load."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import apsw
import psutil
import zmq

from bench.findings import percentile
from d8mesh import __version__

#: Appends that are synced one by one, and their size: about one small commit each.
SYNCS: Final = 200
SYNC_BYTES: Final = 4096
#: How long it looks at what others take of the processors.
LOOK_S: Final = 2.0


def describe() -> dict[str, Any]:
    """Return the machine and the versions, and how long its disk takes for an fsync."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file_system": _file_system(Path(tempfile.gettempdir())),
        "fsync_p50_ms": fsync_p50_s(Path(tempfile.gettempdir())) * 1000,
        "load_before": load(),
        "versions": {
            "d8mesh": __version__,
            "Python": platform.python_version(),
            "pyzmq": zmq.__version__,
            "libzmq": zmq.zmq_version(),
            "apsw": apsw.apsw_version(),
            "SQLite": apsw.sqlite_lib_version(),
            "msgspec": metadata.version("msgspec"),
            "httptools": metadata.version("httptools"),
        },
    }


def cpu_model() -> str:
    """Return the processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(
            r"^(?:model name|Model)\s*:\s*(.+)$", info.read_text("utf-8"), re.MULTILINE
        )
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def fsync_p50_s(folder: Path) -> float:
    """Return how long an fsync after an append takes in `folder`, in the median."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNCS):
            file.write(bytes(SYNC_BYTES))
            begun = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return percentile(times, 0.5)


def load() -> float:
    """Return the load average of the last minute (0 where the system has none)."""
    return float(psutil.getloadavg()[0])


def busy() -> float:
    """Return the share (0 to 1) of all cores that anybody, the host's others too, takes now."""
    before = psutil.cpu_times()
    time.sleep(LOOK_S)
    after = psutil.cpu_times()
    idle_s = after.idle - before.idle + getattr(after, "iowait", 0) - getattr(before, "iowait", 0)
    return max(0.0, 1 - float(idle_s) / (LOOK_S * (os.cpu_count() or 1)))


def stolen_s() -> float:
    """Return the processor time that a virtual machine's host has given to others (Linux)."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _file_system(folder: Path) -> str:
    best = ("", "?")
    for part in psutil.disk_partitions(all=True):
        if str(folder).startswith(part.mountpoint) and len(part.mountpoint) > len(best[0]):
            best = (part.mountpoint, part.fstype)
    return best[1]
