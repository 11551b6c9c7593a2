"""How many attempts a worker wants of each orchestrator: slots, prefetch, and fair turns.

A window is state, never a count of events: the attempts a worker wants outstanding with
one orchestrator in total. All of them are offered all that is free; when the last slot is
taken the others are offered nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from d8mesh.core.employer import Employer
from d8mesh.core.messages import MAX_WINDOW

#: Tasks that take longer than this on average are never prefetched: they would wait here
#: while another worker idles.
LONG_TASK_S: Final = 0.1
#: As much work is prefetched as the slots do in this time: covers a round trip and a commit.
AHEAD_S: Final = 0.1
#: Most attempts prefetched: batches of a few hundred flow while others are on their way.
MAX_PREFETCH: Final = 1024
#: How many tasks the mean remembers, and the longest that one of them may count: a long
#: task stops the prefetch at once, twenty quick ones bring it back.
MEMORY_TASKS: Final = 8
LONGEST_SAMPLE_S: Final = 1.0
#: How long a free slot is kept for an orchestrator whose turn it is.
TURN_S: Final = 0.5


class Credit:
    """Measures how long tasks take and shares what is free."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        #: slots whose handler runs on although nobody wants its task any more
        self.stuck = 0
        #: why nothing is wanted now; empty if something is
        self.closed = ""
        self._mean_s: float | None = None
        self._turns: dict[str, float] = {}

    def measure(self, count: int, total_s: float, longest_s: float) -> None:
        """Take in how long `count` tasks took."""
        mean_s = total_s / count
        if longest_s > LONGEST_SAMPLE_S:
            mean_s = min(mean_s, LONGEST_SAMPLE_S)
        if self._mean_s is None:
            self._mean_s = mean_s
        else:
            self._mean_s += (mean_s - self._mean_s) * count / (count + MEMORY_TASKS)

    @property
    def usable(self) -> int:
        """How many slots can take a task, busy or not."""
        return max(0, self.slots - self.stuck)

    @property
    def prefetch(self) -> int:
        """How many attempts may wait here beyond the slots."""
        mean_s, usable = self._mean_s, self.usable
        if mean_s is None or mean_s >= LONG_TASK_S or not usable:
            return 0
        if mean_s * MAX_PREFETCH <= AHEAD_S * usable:
            return MAX_PREFETCH
        return int(AHEAD_S * usable / mean_s)

    def window(self, employer: Employer, everyone: Collection[Employer]) -> int:
        """Return how many attempts are wanted of `employer` in total.

        Args:
            employer: the orchestrator to be told.
            everyone: all orchestrators, it too.
        """
        if self.closed:
            return 0
        held, prefetch = len(employer.held), self.prefetch
        capacity = min(MAX_WINDOW, self.usable + prefetch)
        if len(everyone) == 1:
            return capacity
        free = max(0, capacity - sum([len(each.held) for each in everyone]))
        busy = sum([1 for each in everyone if each.held])
        rivals = busy if held else busy + 1
        share = capacity if rivals <= 1 else max(self.usable, capacity // rivals)
        window = min(held + free, share)
        if prefetch:  # quick tasks: one that waits behind others does not wait long
            return window if held else max(window, min(self.usable, share))
        if self._turns and next(iter(self._turns)) != employer.broker_id:
            window = min(window, held)
        return window

    def room(self, everyone: Collection[Employer]) -> int:
        """Return how many more attempts can start here, now or soon."""
        if self.closed:
            return 0
        capacity = self.usable + self.prefetch
        if self.prefetch:  # what idle orchestrators are offered beside the busy one's share
            capacity += self.usable * (len(everyone) - 1)
        return max(0, capacity - sum([len(each.held) for each in everyone]))

    def promise_turn(self, employer: Employer, now: float) -> None:
        """Work of `employer` had to be given back: the next free slot is offered to it."""
        self._turns.setdefault(employer.broker_id, now)

    def had_turn(self, employer: Employer) -> None:
        """Work of `employer` was taken."""
        self._turns.pop(employer.broker_id, None)

    def expire_turns(self, everyone: Collection[Employer], now: float) -> None:
        """End turns that are not used; one begins when a slot is free."""
        if not self._turns:
            return
        is_free = self.usable > sum([len(each.held) for each in everyone])
        first = next(iter(self._turns))
        if not is_free:
            self._turns[first] = now
        elif now - self._turns[first] > TURN_S:
            del self._turns[first]

    @property
    def turn_began(self) -> float | None:
        """Since when a free slot is kept for somebody, if one is."""
        return next(iter(self._turns.values()), None)
