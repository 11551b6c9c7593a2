"""What the task table holds: batches, tasks, what went wrong with them, counts.

Plain records; `core.broker.task_table` alone takes facts into them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import msgspec

from d8mesh.core.protocol.task import EXCUSED, SUSPECT, UNRETURNED, Spec, TaskState

_QUEUED: Final = TaskState.QUEUED


@dataclass(slots=True, eq=False)
class Batch:
    """Tasks accepted together: ``session-first`` up to `count` of them, one `spec`.

    Tasks from index `fresh` on were never handed out, but for those in `gone`.
    `payloads` is None when they are on disk only; a drawn task's entry is emptied.
    """

    session: str
    first: int
    count: int
    spec: Spec
    at: float
    size_bytes: int
    #: position in the order of acceptance, over all sessions
    order: int
    payloads: list[bytes] | None = None
    fresh: int = 0
    unfinished: int = 0
    is_delayed: bool = False
    #: when the deadline of its tasks passes (monotonic seconds), set when it is queued
    expires: float = math.inf
    gone: set[int] = field(default_factory=set)

    def task_id(self, index: int) -> str:
        """Return the id of the task at `index`."""
        return f"{self.session}-{self.first + index}"

    @property
    def fresh_count(self) -> int:
        """How many were never handed out and are not gone."""
        return self.count - self.fresh - len(self.gone)


@dataclass(slots=True, eq=False)
class History:
    """What went wrong with a task so far; most tasks have none."""

    errors: int = 0
    #: (worker, attempt) of what counts as lost with its worker
    losses: set[tuple[str, int]] = field(default_factory=set)
    #: (worker, attempt) of the other errors: told again, such a failure counts no more
    failures: set[tuple[str, int]] = field(default_factory=set)
    #: worker -> how many of the errors and losses were there
    failed_on: Counter[str] = field(default_factory=Counter)
    #: polling workers that have had it
    holders: set[str] = field(default_factory=set)
    #: how often a worker fell silent with it and nobody was heard
    cuts: int = 0
    #: when it may run again (Unix seconds, 0: now), and how long that was away when it was said
    not_before_at: float = 0.0
    pause_s: float = 0.0
    last_error: str = ""
    #: how often it was given back since the last error of its own, and how often of these it
    #: should have run, by whom, and why the last time
    returns: int = 0
    suspect_returns: int = 0
    #: how often it was given back beside that, which bounds nothing
    excused_returns: int = 0
    returned_by: set[str] = field(default_factory=set)
    last_return: str = ""

    @property
    def all_returns(self) -> int:
        """How often it was given back since the last error of its own."""
        return self.returns + self.excused_returns

    def count(self, worker_id: str, n: int, why: str, *, is_loss: bool) -> None:
        """Note an error, or the loss of the worker, which uses up an attempt."""
        self.errors += 1
        self.failed_on[worker_id] += 1
        self.last_error, self.last_return = why, ""
        (self.losses if is_loss else self.failures).add((worker_id, n))
        if not is_loss:  # a loss may be taken back
            self.returns = self.suspect_returns = self.excused_returns = 0
            self.returned_by.clear()

    def give_back(self, worker_id: str, why: str, returned: int) -> None:
        """Note that an attempt ended without an error."""
        self.last_return = why
        if returned == EXCUSED:
            self.excused_returns += 1
        elif returned != UNRETURNED:
            self.returns += 1
        if returned == SUSPECT:
            self.suspect_returns += 1
            self.returned_by.add(worker_id)


class RunningAttempt(msgspec.Struct, frozen=True, gc=False):
    """What is known of an attempt while it runs; no fact tells it and no store keeps it.

    A task has another one when its attempt is handed out, or when something of it changes.
    """

    #: what its result must show; empty: handed out before our start, and not seen since
    token: bytes = b""
    #: when it is overdue, and when it was handed out (monotonic seconds)
    until: float = 0.0
    since: float = 0.0
    #: the number of its assignment within the worker's session
    work_seq: int = 0
    #: the LLM service and its model that it was placed at; empty: the worker's own slots run it
    service: str = ""
    model: str = ""


NO_ATTEMPT: Final = RunningAttempt()


@dataclass(slots=True, eq=False)
class TaskRecord:
    """One unfinished task that is, or was, in somebody's hands.

    All but `attempt` and `failed_at` is what the facts tell: only the task table changes it.
    """

    batch: Batch
    id: str
    payload: bytes | None
    state: TaskState = _QUEUED
    n: int = 0  #: attempts handed out so far; the current attempt's number
    worker_id: str = ""  #: who has the current attempt
    assignment: int = 0  #: number of the one it went with
    history: History | None = None
    attempt: RunningAttempt = NO_ATTEMPT
    #: LLM services where attempts of it ended badly
    failed_at: frozenset[str] = frozenset()

    def remember(self) -> History:
        """Return the history, made on first use."""
        if self.history is None:
            self.history = History()
        return self.history


class Ranges:
    """A set of integers kept as sorted, disjoint ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, first: int, count: int) -> None:
        """Add `count` integers from `first`, merging with neighbours."""
        end = first + count
        if self._ends and self._ends[-1] == first:  # the common case: the next in line
            self._ends[-1] = end
            return
        low = bisect_right(self._ends, first - 1)
        high = bisect_right(self._starts, end)
        if low < high:
            first, end = min(first, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [first]
        self._ends[low:high] = [end]

    def overlap(self, first: int, count: int) -> int:
        """Return how many of `count` integers from `first` are in the set."""
        if not self._ends or first >= self._ends[-1]:  # the common case, as in `add`
            return 0
        end, total = first + count, 0
        at = max(bisect_right(self._starts, first) - 1, 0)
        while at < len(self._starts) and self._starts[at] < end:
            total += max(0, min(end, self._ends[at]) - max(first, self._starts[at]))
            at += 1
        return total


@dataclass(slots=True)
class Totals:
    """Lifetime counts; they survive restarts and pruning."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(slots=True)
class WorkerRecord:
    """What outlives a worker's connection: its counts, and a polling worker's registration."""

    completed: int = 0
    failed: int = 0
    worker_type: str = ""
    #: of a polling worker that is registered what `registration` made of it, else None
    capabilities: bytes | None = None

    def registered(self) -> tuple[dict[str, object], float]:
        """Return a polling worker's capabilities and when it registered (Unix; 0: unknown)."""
        found = msgspec.msgpack.decode(self.capabilities or b"\x80")
        at = 0.0
        if isinstance(found, list):  # files of before hold the capabilities alone
            found, at = found
        return (found if isinstance(found, dict) else {}), at


def registration(capabilities: object, at: float) -> bytes:
    """Return what is stored of a polling worker that registers at that time (Unix seconds)."""
    return msgspec.msgpack.encode([capabilities, at])
