"""Which assignments are written later: nobody awaits their record.

That of a single task is worth nothing once the task is finished, and most are by then. Without
it a task may run once more after a crash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from d8mesh.core.protocol.task import Assigned, Cancelled, Completed, Fact, Failed

#: The assignment of a single task is written after once or twice so long: quick tasks are finished
#: by then, also a thousand at once.
DEFERRAL_S: Final = 0.1


class Deferral:
    """Keeps the assignments whose turn comes later; one `due` per commit of the loop."""

    def __init__(self) -> None:
        #: when something must be written though nothing else is (monotonic seconds)
        self.until = math.inf
        #: assignments of several tasks: they go with the next commit
        self._late: list[Assigned] = []
        #: those of single tasks by task: since the last time that was due, and before it
        self._young: dict[str, Assigned] = {}
        self._old: dict[str, Assigned] = {}

    def due(self, facts: Sequence[Fact], now: float) -> list[Fact]:
        """Return what of `facts`, and of what was kept back, is to be written now."""
        written: list[Fact] = [*self._late]
        self._late.clear()
        young, old = self._young, self._old
        for fact in facts:  # every fact comes by here: the exact types are the quickest to tell
            if type(fact) is Assigned and not fact.is_needed:
                if len(fact.ids) == 1:
                    young[fact.ids[0]] = fact
                else:
                    self._late.append(fact)
                continue
            written.append(fact)
            if type(fact) is Completed or type(fact) is Failed or type(fact) is Cancelled:
                for task_id in fact.ids if young or old else ():
                    young.pop(task_id, None)
                    old.pop(task_id, None)
        is_due = now >= self.until
        if is_due:
            written += old.values()
            self._old, self._young = young, {}
        if not (self._late or self._young or self._old):
            self.until = math.inf
        elif is_due or self.until == math.inf:
            self.until = now + DEFERRAL_S
        return written

    def rest(self) -> list[Fact]:
        """Return what is still kept back: a stop in good order writes it."""
        return [*self._late, *self._old.values(), *self._young.values()]
