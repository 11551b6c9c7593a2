"""The order in which waiting tasks are handed out: lanes, priorities, ageing.

A lane holds the waiting tasks of one type and wished model. Within all lanes priority 10
goes first, except that every 16th assignment goes to the oldest task below the highest
priority, so that low ones do not starve: no clock, O(priorities), the same after a restart.
An index over the task table: it changes no task.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.protocol.task import Spec, TaskState
from d8mesh.core.protocol.wish import lane_part

#: Every 16th assignment goes below the highest priority (`docs/RELIABILITY.md`, rule 4).
AGEING_PERIOD: Final = 16
UNLIMITED: Final = 2**31
#: Lanes kept though they are empty: where tasks come one by one, the next is of the same type.
KEPT_LANES: Final = 16
#: Batches whose payloads are asked for ahead of their turn, so that loading overlaps work.
LOAD_AHEAD_BATCHES: Final = 32
#: Batches and retried tasks looked at to tell how many go before one: every look at a `status`
#: pays for it, a tenth of a microsecond each.
COUNTED_BATCHES: Final = 1000
#: The same where somebody asks for the place of one task: each chat is a batch of its own.
AHEAD_BATCHES: Final = 10_000


class LaneKey(NamedTuple):
    """What tasks of one lane share: all that decides who can run them."""

    type: str
    #: of the wish, what decides who may run it: what helps to choose differs from task to task
    model: str

    @classmethod
    def of(cls, spec: Spec) -> LaneKey:
        """Return where tasks of this spec wait."""
        return cls(spec.type, lane_part(spec.model))


class Turn(NamedTuple):
    """Whose turn it is, and for how many at most until the ageing rule is asked again."""

    lane: Lane
    priority: int
    limit: int
    is_aged: bool = False


class Lane:
    """Waiting tasks of one `LaneKey`, by priority; retried ones apart from fresh batches."""

    __slots__ = ("_fresh", "_retried", "is_fed", "key", "mask")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.mask = 0  #: bit p is set when priority p has tasks
        self.is_fed = False  #: a task came since somebody last looked for a place for all
        # By priority, made when needed: types come from callers, and most use one priority.
        self._fresh: defaultdict[int, deque[Batch]] = defaultdict(deque)
        self._retried: defaultdict[int, deque[TaskRecord]] = defaultdict(deque)

    def put_batch(self, batch: Batch) -> None:
        """Queue the fresh tasks of `batch` behind those of their priority."""
        self._fresh[batch.spec.priority].append(batch)
        self.is_fed = True
        self.mask |= 1 << batch.spec.priority

    def put_task(self, task: TaskRecord) -> None:
        """Queue a task that waits again; it goes before fresh ones of its priority."""
        self._retried[task.batch.spec.priority].append(task)
        self.is_fed = True
        self.mask |= 1 << task.batch.spec.priority

    def retried(self, priority: int, limit: int) -> list[TaskRecord]:
        """Return up to `limit` waiting single tasks of `priority`, without taking them."""
        waiting = self._retried.get(priority)
        if not waiting:
            return []
        while waiting and waiting[0].state is not TaskState.QUEUED:
            waiting.popleft()  # cancelled or finished by a late result meanwhile
        return [task for task in islice(waiting, limit) if task.state is TaskState.QUEUED]

    def take_retried(self, task: TaskRecord) -> None:
        """Take one of `retried` out."""
        self._retried[task.batch.spec.priority].remove(task)
        self._settle(task.batch.spec.priority)

    def head(self, priority: int) -> Batch | None:
        """Return the batch whose turn it is, or None."""
        fresh = self._fresh.get(priority)
        while fresh:
            head = fresh[0]
            if head.unfinished and head.fresh_count:
                return head
            fresh.popleft()
        self._settle(priority)
        return None

    def oldest_order(self, priority: int) -> int | None:
        """Return the order of acceptance of the oldest waiting task of `priority`."""
        single = self.retried(priority, 1)
        head = self.head(priority)
        orders = [batch.order for batch in (single[0].batch if single else None, head) if batch]
        return min(orders, default=None)

    def has_waiting(self, priority: int) -> bool:
        """Return whether a task of `priority` waits."""
        return self.head(priority) is not None or bool(self.retried(priority, 1))

    def upcoming(self, priority: int) -> Iterator[Batch]:
        """Yield the batches whose turn comes next."""
        return islice(self._fresh.get(priority, ()), LOAD_AHEAD_BATCHES)

    def ahead_of(self, batch: Batch, index: int) -> tuple[int, bool]:
        """Return how many tasks of this lane go before a waiting one, as far as is looked.

        Returns:
            The count, and whether there may be more: not more than AHEAD_BATCHES are looked at.
        """
        task_id, count, looked = batch.task_id(index), 0, 0
        for priority in range(10, batch.spec.priority - 1, -1):
            for task in self._retried.get(priority, ()):
                if task.id == task_id:
                    return count, False
                count += task.state is TaskState.QUEUED
                looked += 1
                if looked >= AHEAD_BATCHES:
                    return count, True
            for other in self._fresh.get(priority, ()):
                if other is batch:
                    return count + max(0, index - batch.fresh), False
                count += other.fresh_count
                looked += 1
                if looked >= AHEAD_BATCHES:
                    return count, True
        return count, False

    def count(self, priority: int, looked: int) -> int:
        """Return how many tasks of a priority or a higher one wait.

        Batches beyond the first `looked` of each priority count as one task each.
        """
        found, mask = 0, self.mask
        for each in range(priority, 11):
            if not mask >> each:
                break
            if mask & 1 << each:
                fresh = self._fresh.get(each, ())
                found += len(self._retried.get(each, ())) + max(0, len(fresh) - looked)
                for batch in islice(fresh, looked):  # for each attempt that is placed: no calls
                    found += batch.count - batch.fresh - len(batch.gone)
        return found

    def _settle(self, priority: int) -> None:
        if not self._fresh.get(priority) and not self._retried.get(priority):
            self.mask &= ~(1 << priority)


class ReadyQueue:
    """All lanes, and the count that keeps the ageing rule."""

    def __init__(self) -> None:
        self.lanes: dict[LaneKey, Lane] = {}
        self._since_aged = 0

    def ahead_of(self, batch: Batch, index: int) -> tuple[int, bool]:
        """Return how many tasks of its type and model go before one; see `Lane.ahead_of`."""
        lane = self.lanes.get(LaneKey.of(batch.spec))
        return (0, False) if lane is None else lane.ahead_of(batch, index)

    def put_batch(self, batch: Batch) -> None:
        """Queue a batch that may run now."""
        self._lane(batch).put_batch(batch)

    def put_task(self, task: TaskRecord) -> None:
        """Queue a single task that may run now."""
        self._lane(task.batch).put_task(task)

    def drop_empty(self) -> None:
        """Forget lanes without tasks if there are many: types come from callers."""
        if len(self.lanes) > KEPT_LANES:
            for key in [key for key, lane in self.lanes.items() if not lane.mask]:
                del self.lanes[key]

    def choose(self, lanes: list[Lane]) -> Turn | None:
        """Return whose turn it is among `lanes`, or None if nothing waits there."""
        while True:
            mask = 0
            for lane in lanes:
                mask |= lane.mask
            if not mask:
                return None
            top = mask.bit_length() - 1
            is_only = not mask & ~(1 << top)
            if not is_only and self._since_aged >= AGEING_PERIOD - 1:
                aged = self._oldest(lanes, range(1, top))
                if aged is not None:
                    return Turn(*aged, limit=1, is_aged=True)
            if len(lanes) == 1 and lanes[0].has_waiting(top):
                chosen: tuple[Lane, int] | None = (lanes[0], top)
            else:
                chosen = self._oldest(lanes, (top,))
            if chosen is not None:
                left = max(1, AGEING_PERIOD - 1 - self._since_aged)
                return Turn(*chosen, limit=UNLIMITED if is_only else left)
            # What was there had gone; looking has cleared its bit: look again.

    def handed_out(self, count: int, *, is_aged: bool) -> None:
        """Count assignments for the ageing rule."""
        self._since_aged = 0 if is_aged else min(self._since_aged + count, AGEING_PERIOD)

    @staticmethod
    def _oldest(lanes: list[Lane], priorities: range | tuple[int, ...]) -> tuple[Lane, int] | None:
        best: tuple[Lane, int] | None = None
        best_order = 0
        for lane in lanes:
            for priority in priorities:
                if not lane.mask & 1 << priority:
                    continue
                order = lane.oldest_order(priority)
                if order is not None and (best is None or order < best_order):
                    best, best_order = (lane, priority), order
        return best

    def _lane(self, batch: Batch) -> Lane:
        key = LaneKey.of(batch.spec)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane
