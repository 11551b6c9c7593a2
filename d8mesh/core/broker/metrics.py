"""What the broker counts and measures: one structure, and one snapshot of it for who asks.

A new counter is a field of `Metrics`, counted where it happens. Labels are few and bounded: codes
of our own, and task types up to a number.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

from d8mesh.core.broker.records import Totals

#: Upper ends of the buckets of every histogram, in seconds: from a no-op to a long generation.
#: What is longer has a bucket of its own.
BOUNDS_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0)
#: Task types that are measured apart; those that come later are one: types come from callers.
MAX_TYPES: Final = 30
OTHER_TYPES: Final = "*"


class Histogram(msgspec.Struct):
    """How often something took how long: `counts[i]` took up to ``BOUNDS_S[i]``.

    `fresh`: (seconds, how many took that each), to be counted by `fold`: on the path of every
    task an append is all.
    """

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0
    fresh: list[tuple[float, int]] = []

    def fold(self) -> None:
        """Count what is fresh."""
        for seconds, count in self.fresh:
            self.counts[bisect_left(BOUNDS_S, seconds)] += count
            self.total_s += max(0.0, seconds) * count  # a wall clock may be set back
        self.fresh.clear()


class Metrics(msgspec.Struct, kw_only=True):
    """All counters; since the start but for `totals`, which the store keeps."""

    totals: Totals
    #: refusals by error code
    rejected: dict[str, int] = {}
    #: results of tasks that had one
    duplicates: int = 0
    #: messages that could not be sent
    undelivered: int = 0
    #: attempts: handed out, taken back uncounted, ended in an error, lost with their worker
    assigned: int = 0
    returned: int = 0
    errors: int = 0
    losses: int = 0
    #: from a submit (or its `run_at`) to the first assignment
    queue_wait_s: Histogram = msgspec.field(default_factory=Histogram)
    #: from an assignment to the recorded success, by task type
    run_s: dict[str, Histogram] = {}
    #: how long a commit took; one that was in flight from the wake-up of the loop on
    commit_s: Histogram = msgspec.field(default_factory=Histogram)

    def reject(self, code: str) -> None:
        """Count a refusal."""
        self.rejected[code] = self.rejected.get(code, 0) + 1

    def runs_of(self, kind: str) -> Histogram:
        """Return the histogram of a task type."""
        found = self.run_s.get(kind)
        if found is None:
            kind = kind if len(self.run_s) < MAX_TYPES else OTHER_TYPES
            found = self.run_s.setdefault(kind, Histogram())
        return found

    def fold(self) -> None:
        """Count what is fresh; at least every second, so that it does not grow."""
        for histogram in (self.queue_wait_s, self.commit_s, *self.run_s.values()):
            histogram.fold()

    def copy(self) -> Metrics:
        """Return what is counted by now."""
        self.fold()
        return msgspec.convert(msgspec.to_builtins(self), Metrics)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker stands at a moment."""

    queued: int
    running: int
    workers: int
    workers_online: int
    workers_busy: int
    clients: int
    #: why nothing is accepted; None: it is
    closed_for: str | None
    counted: Metrics
