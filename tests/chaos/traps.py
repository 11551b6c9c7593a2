"""Deaths at named points of the code: a file for each process says where it dies next."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Point:
    """A failpoint, and how to get a process there."""

    name: str
    #: it dies at one of the first so many times that it comes by
    most: int
    #: sent to the process, as it would not come by of itself
    push: signal.Signals | None = None


POINTS: Final = {
    "broker": (
        Point("broker.after_commit", 50),
        Point("broker.before_commit", 50),
        Point("broker.restored", 1, signal.SIGKILL),
        Point("broker.between_sends", 50),
        Point("broker.received", 50),
        Point("broker.after_sends", 50),
        Point("broker.stopping", 1, signal.SIGTERM),
    ),
    "worker": (
        Point("worker.outbox_written", 1),
        Point("worker.handed_out", 10),
        Point("worker.results_sent", 10),
        Point("worker.acknowledged", 10),
        Point("worker.mid_run", 3),
        Point("worker.finished", 10),
        Point("worker.stopping", 1, signal.SIGTERM),
    ),
}


class Traps:
    """The files that ``D8_FAILPOINT=@FILE`` names, one for each process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed: dict[str, Point] = {}
        self._drawn = dict.fromkeys(POINTS, 0)

    def setting(self, name: str) -> str:
        """Return the value of D8_FAILPOINT for a process."""
        return f"@{self._file(name)}"

    def is_armed(self, name: str) -> bool:
        """Tell whether a process is to die already."""
        return name in self._armed

    def arm(self, name: str, kind: str, target: int) -> Point:
        """Have a process die at the next point of its kind, in turns."""
        number = self._drawn[kind]
        self._drawn[kind] += 1
        point = POINTS[kind][number % len(POINTS[kind])]
        new = self._folder / "failpoint.new"
        new.write_text(f"{point.name}:{1 + target % point.most}", "ascii")
        new.replace(self._file(name))
        self._armed[name] = point
        return point

    def sprung(self) -> list[tuple[str, Point]]:
        """Return, once, which processes died of it."""
        dead = [(n, point) for n, point in self._armed.items() if not self._file(n).exists()]
        for name, _ in dead:
            del self._armed[name]
        return dead

    def disarm(self) -> None:
        """Take back what has not happened."""
        for name in self._armed:
            self._file(name).unlink(missing_ok=True)
        self._armed.clear()

    def _file(self, name: str) -> Path:
        return self._folder / f"failpoint-{name}"
