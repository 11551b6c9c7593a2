"""What a worker offers now: task types and models, and types that are withheld for a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: A type whose service is busy or down is not offered for this long, doubled up to the cap.
WITHHELD_S: Final = 1.0
MAX_WITHHELD_S: Final = 30.0


class Offer:
    """The types and models of one worker."""

    def __init__(self) -> None:
        self._types: tuple[str, ...] = ()
        self.models: tuple[str, ...] = ()
        #: type -> (until, pause); the pause outlives its end, so that the next is longer
        self._withheld: dict[str, tuple[float, float]] = {}

    def change(self, types: Iterable[str], models: Iterable[str]) -> bool:
        """Take in what this worker can do; return whether that is something new."""
        before = (self._types, self.models)
        self._types, self.models = tuple(types), tuple(models)
        return before != (self._types, self.models)

    def types(self, now: float) -> list[str]:
        """Return the types that may be handed out now."""
        if not self._withheld:
            return list(self._types)
        return [t for t in self._types if self._withheld.get(t, (0.0, 0.0))[0] <= now]

    def withhold(self, task_type: str, now: float) -> None:
        """Do not offer `task_type` for a while, longer each time."""
        _, before_s = self._withheld.get(task_type, (0.0, 0.0))
        pause_s = min(MAX_WITHHELD_S, before_s * 2 or WITHHELD_S)
        self._withheld[task_type] = (now + pause_s, pause_s)

    def restore(self, task_type: str) -> None:
        """The service behind `task_type` works: the next pause is a short one again."""
        if self._withheld:
            until, _ = self._withheld.get(task_type, (0.0, 0.0))
            if not until:
                self._withheld.pop(task_type, None)

    def expire(self, now: float) -> bool:
        """End the pauses that are over; return whether there were any."""
        over = [t for t, (until, _) in self._withheld.items() if until and until <= now]
        for task_type in over:
            self._withheld[task_type] = (0.0, self._withheld[task_type][1])
        return bool(over)

    def next_deadline(self) -> float:
        """Return when `expire` has something to do next."""
        untils = [until for until, _ in self._withheld.values() if until]
        return min(untils, default=float("inf"))
