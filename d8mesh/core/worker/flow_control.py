"""How many attempts a worker wants of each orchestrator: its slots, and a little ahead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from d8mesh.core.protocol.messages import MAX_WINDOW
from d8mesh.core.worker.broker_session import BrokerSession

#: Tasks are fetched ahead for this much work of a slot; longer ones are not fetched ahead.
PREFETCH_S: Final = 0.1
MAX_PREFETCH: Final = 1024
#: While others fill all slots, an orchestrator is offered one place after this long.
STARVED_S: Final = 3.0
#: How many tasks the mean duration remembers, and the longest that one of them may count.
MEMORY_TASKS: Final = 8
LONGEST_SAMPLE_S: Final = 1.0


class FlowControl:
    """Measures how long tasks take, and shares what is free among the orchestrators."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        #: slots whose handler runs on although nobody wants its task any more
        self.stuck = 0
        #: attempts that wait here beyond the slots
        self.prefetch = 0
        self.is_closed = False
        #: results cannot be kept on the worker's own disk: it is full, or fails
        self.is_disk_bad = False
        self._mean_s = PREFETCH_S

    @property
    def room(self) -> int:
        """How many attempts can run at once now."""
        return 0 if self.is_closed or self.is_disk_bad else max(0, self.slots - self.stuck)

    def measure(self, total_s: float, count: int) -> None:
        """Take in how long `count` attempts took together."""
        if not count:
            return
        sample_s = min(total_s / count, LONGEST_SAMPLE_S)
        self._mean_s += (sample_s - self._mean_s) * count / (count + MEMORY_TASKS)
        mean_s = max(self._mean_s, 1e-7)
        wanted = 0 if mean_s >= PREFETCH_S else int(self.slots * PREFETCH_S / mean_s)
        self.prefetch = min(wanted, max(2 * self.prefetch, self.slots), MAX_PREFETCH)

    def window(self, broker: BrokerSession, brokers: Collection[BrokerSession], now: float) -> int:
        """Return how many attempts a broker may have outstanding in slots here, in total."""
        room = self.room
        if not room:
            return 0
        if len(brokers) == 1:  # as the rules below have it too
            return min(MAX_WINDOW, room + self.prefetch)
        own = broker.in_slots
        busy = sum(each.in_slots for each in brokers)
        live = sum(each.is_welcome for each in brokers if each is not broker)
        if busy == own and (own or not live):
            return min(MAX_WINDOW, room + self.prefetch)
        free = max(0, room - busy)
        if not own and not free:
            broker.starved_since = broker.starved_since or now
            return 1 if now - broker.starved_since >= STARVED_S else 0
        broker.starved_since = 0.0
        if not own:
            return min(MAX_WINDOW, free)
        active = sum(each.in_slots > 0 for each in brokers)
        return min(MAX_WINDOW, min(own, room) + free + self.prefetch // active)
