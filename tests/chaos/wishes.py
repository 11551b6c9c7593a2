"""What some tasks of the load ask for beside being run, and which ends that allows.

A wish travels in the diary beside the acknowledgement, so that the verdict judges each task by
what it asked for. Plain tasks, replays and those with a key have none.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from d8mesh.nodes.client.groups import SubmitOptions

#: This share of a client's submits is of few tasks with a wish; the rest are plain.
SHARE: Final = 0.3
BATCH: Final = 8
#: ``keyed`` is sent twice under one key; of ``unwanted`` some are cancelled and replayed.
KINDS: Final = ("short", "long", "unwanted", "fenced", "later", "once", "keyed")
#: A deadline that no task of a run of ten minutes sees; what is late for it is judged all the same.
LONG_S: Final = 600.0
#: `run_at` is the wall clock's and the diaries are the monotonic clock's.
CLOCKS_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Wish:
    """What a task asked for, and when (monotonic seconds): a moment before its submit."""

    kind: str = ""
    asked: float = 0.0
    deadline_s: float | None = None
    not_before: float = 0.0

    @property
    def row(self) -> dict[str, Any]:
        """It as it stands in a diary."""
        return asdict(self)

    def is_late(self, told: float) -> bool:
        """Tell whether a failure told then may be that of the deadline."""
        return self.deadline_s is not None and told >= self.asked + self.deadline_s

    def is_early(self, start: float) -> bool:
        """Tell whether the task may not have started then."""
        return start < self.not_before - CLOCKS_S


def draw(kind: str) -> tuple[Wish, SubmitOptions]:
    """Return a wish of this kind, made now, and how it is said to the client."""
    now = time.monotonic()
    match kind:
        case "short":
            deadline_s = random.uniform(0.1, 2.0)
            return Wish(kind, now, deadline_s), {"deadline_s": deadline_s}
        case "long":
            return Wish(kind, now, LONG_S), {"deadline_s": LONG_S}
        case "later":
            wait_s = random.uniform(0.5, 5.0)
            return Wish(kind, now, None, now + wait_s), {"run_at": time.time() + wait_s}
        case "fenced":
            return Wish(kind, now), {"fenced": True}
        case "once":
            return Wish(kind, now), {"max_attempts": 1}
        case _:
            return Wish(kind, now), {}


def duration_ms(kind: str) -> int:
    """Return how long such a task takes: what may be cut off shall be running for a while."""
    return random.randint(0, 1500) if kind in ("short", "unwanted") else random.randint(0, 300)
