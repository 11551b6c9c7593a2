"""Named points at which a process under test dies, as `kill -9` would end it.

``D8_FAILPOINT=NAME`` dies at the first time, ``NAME:17`` at the 17th, ``NAME:0.01`` with that
probability each time. ``D8_FAILPOINT=@FILE`` takes the same from a file, looked at whenever a
point is passed, and removed by the process that dies of it: so somebody outside chooses the
next death while the process runs. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path
from typing import Final

FAILPOINT_VARIABLE: Final = "D8_FAILPOINT"
#: What can be named; `passed` refuses others, so that none can be waited for in vain.
FAILPOINTS: Final = frozenset(
    {
        "broker.restored",
        "broker.received",
        "broker.before_commit",
        "broker.after_commit",
        "broker.between_sends",
        "broker.after_sends",
        "broker.stopping",
        "worker.handed_out",
        "worker.mid_run",
        "worker.finished",
        "worker.outbox_written",
        "worker.results_sent",
        "worker.acknowledged",
        "worker.stopping",
    }
)
#: The exit code where a process cannot kill itself.
EXIT: Final = 137


def passed(name: str) -> None:
    """Die here if this is the point, and the time, that was asked for."""
    if _trap is not None:
        _trap.spring(name)


class _Trap:
    """What was asked for, and how often its point was passed."""

    def __init__(self, wanted: str) -> None:
        self._file = Path(wanted[1:]) if wanted.startswith("@") else None
        self._wanted = "" if self._file else wanted
        self._count = 0

    def spring(self, name: str) -> None:
        assert name in FAILPOINTS, name
        if self._file is not None:
            try:
                wanted = self._file.read_text("ascii").strip()
            except (OSError, ValueError):
                return
            if wanted != self._wanted:
                self._wanted, self._count = wanted, 0
        point, _, when = self._wanted.partition(":")
        if point != name or not self._is_time(when or "1"):
            return
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
        _die()

    def _is_time(self, when: str) -> bool:
        self._count += 1
        if "." in when:
            return random.random() < float(when)
        return self._count >= int(when)


def _die() -> None:
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(EXIT)


_trap: Final = _Trap(os.environ[FAILPOINT_VARIABLE]) if os.environ.get(FAILPOINT_VARIABLE) else None
