"""The port to what keeps the broker's facts: questions, answers, and what a start goes on from.

A store is a room of its own in `edge`; `tests/core/broker/test_store.py` says what it must do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from d8mesh.core.broker.records import Batch, History, Totals, WorkerRecord
from d8mesh.core.protocol.task import Fact, Spec, TaskState

#: Past attempts that are told of one task, the newest.
MAX_PAST_ATTEMPTS: Final = 20


class Store(Protocol):
    """Keeps facts, in the order in which they are given; one process has it at a time.

    Thread: all but `ask` on the broker's; `ask` on any one other thread.
    """

    @property
    def broker_id(self) -> str:
        """The stable id of this orchestrator, made with the store."""

    def restore(self) -> Restored:
        """Raise the epoch, durably, and return the state to go on from.

        Raises:
            JournalBrokenError: what is kept is damaged, or contradicts itself.
            JournalError: it cannot be read or written now.
        """

    def append(self, facts: Sequence[Fact]) -> None:
        """Begin to commit `facts`, all or none, after those before; may return before the end.

        Raises:
            JournalError: this commit, or one before, failed: nothing of it nor after it is kept.
        """

    def confirmed(self) -> int:
        """Return how many of the commits are durable; the loop is woken when more are.

        Raises:
            JournalError: a commit failed: nothing of it nor after it is kept.
        """

    def ask(self, question: Question) -> StoreAnswer:
        """Answer from what is durable; waits.

        Raises:
            JournalError: it cannot be read now.
        """

    @property
    def needs_wiping(self) -> bool:
        """True while what was erased may still be found beside what is kept."""

    def wipe(self) -> bool:
        """Do a step of overwriting what is left of what was erased; return whether all is gone.

        Short ones: what takes long is done before, by `FoldLog`.

        Raises:
            JournalError: it could not be written; it is to be tried again.
        """

    def free_bytes(self) -> int:
        """Return how much room is left for facts."""

    def close(self) -> None:
        """Wait for what was begun, and let everything go."""


# ------------------------------------------------------------------------ questions


class PayloadsOf(Struct, frozen=True, gc=False):
    """What are the payloads of a batch? `BatchPayloads`, or None: no such batch."""

    session: str
    first: int


class OutcomesOf(Struct, frozen=True, gc=False):
    """How did these tasks end? `FinishedStates`."""

    ids: list[str]


class EndOf(Struct, frozen=True, gc=False):
    """What is there to tell of a finished task? `FinishedTask`, `PrunedTask`, or None."""

    id: str


class DetailsOf(Struct, frozen=True, gc=False):
    """What else is kept of a task, finished or not? `TaskDetails`, `PrunedTask`, or None."""

    id: str


class PageOf(Struct, frozen=True, gc=False):
    """Which tasks are there, in the order of acceptance? `TaskPage`, or `BadCursor`.

    Of one type, final state (then in any order that stays), or unfinished ones only.
    """

    limit: int
    cursor: str = ""
    type: str = ""
    state: TaskState | None = None
    is_open: bool = False
    is_newest_first: bool = False
    #: only those that came in by this door; "": whatever they came in by
    door: str = ""


class PrunableBatches(Struct, frozen=True, gc=False):
    """Which of the `limit` oldest finished batches may be forgotten? `OldBatches`.

    Those that ended before `before_at` (Unix seconds), and the oldest until `excess` tasks are
    gone. One that a key names only after all others of its submit.
    """

    before_at: float
    excess: int
    limit: int


class FoldLog(Struct, frozen=True, gc=False):
    """Do what wiping takes long for, beside the broker's thread. Always None."""


# -------------------------------------------------------------------------- answers


class BatchPayloads(Struct, frozen=True, gc=False):
    """The payloads of a batch, one for each of its tasks."""

    payloads: list[bytes]


class FinishedStates(Struct, frozen=True, gc=False):
    """For each id its `messages.*_STATE` (UNKNOWN: not finished) and its result, or nothing."""

    states: bytes
    payloads: list[bytes]


class PastAttempt(Struct, frozen=True, omit_defaults=True):
    """An attempt that ended without a result."""

    attempt: int
    worker_id: str | None
    at: float
    is_counted: bool
    error: str
    pause_s: float
    traceback: str | None = None


class FinishedTask(Struct, frozen=True):
    """A finished task; `why`: what it failed of; `past`: the newest of its past attempts.

    `is_erased`: what it asked and answered is gone, and `payload` has the rest.
    """

    id: str
    spec: Spec
    created_at: float
    state: TaskState
    n: int
    worker_id: str | None
    at: float
    payload: bytes
    why: str | None
    past: list[PastAttempt]
    is_erased: bool = False


class PrunedTask(Struct, frozen=True, gc=False):
    """The task was finished and is forgotten since then (Unix seconds)."""

    at: float


class TaskDetails(Struct, frozen=True):
    """What was submitted, the newest past attempts, and how it ended if it did.

    `is_erased`: what was submitted is gone.
    """

    spec: Spec
    payload: bytes
    past: list[PastAttempt]
    state: TaskState | None
    is_erased: bool = False


class TaskPage(Struct, frozen=True):
    """Tasks in the order asked for, the finished ones by id; no `next_cursor`: that was all."""

    ids: list[str]
    finished: dict[str, FinishedTask]
    next_cursor: str | None


class BadCursor(Struct, frozen=True, gc=False):
    """The cursor is none of such a listing."""


class OldBatches(Struct, frozen=True, gc=False):
    """Batches as (session, first, count)."""

    batches: list[tuple[str, int, int]]


class Unreadable(Struct, frozen=True, gc=False):
    """The store could not answer."""

    why: str


_OfTasks: TypeAlias = PayloadsOf | OutcomesOf | EndOf | DetailsOf | PageOf
Question: TypeAlias = _OfTasks | PrunableBatches | FoldLog
TaskAnswer: TypeAlias = (
    FinishedStates | FinishedTask | TaskDetails | PrunedTask | TaskPage | BadCursor
)
StoreAnswer: TypeAlias = BatchPayloads | TaskAnswer | OldBatches | Unreadable | None


@dataclass(slots=True)
class Restored:
    """What a store holds at a start: all that the brain must know to go on."""

    epoch: int
    secret: bytes
    next_assignment: int = 1
    totals: Totals = field(default_factory=Totals)
    kept_finished: int = 0
    workers: dict[str, WorkerRecord] = field(default_factory=dict)
    #: all that were ever named, those of forgotten tasks too; and how many can be
    sessions: int = 0
    max_sessions: int = sys.maxsize
    #: session -> (first, count) of everything accepted and not pruned
    accepted: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    keys: dict[str, tuple[bytes, str, int, int]] = field(default_factory=dict)
    #: batches not known as closed, in order of acceptance, with the indexes that are finished
    batches: list[tuple[Batch, list[int]]] = field(default_factory=list)
    #: task id -> (attempt, worker id) of what was in somebody's hands
    in_flight: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: worker id -> seconds that earlier starts waited for it, of those that were not back since
    waited: dict[str, float] = field(default_factory=dict)
    #: task id -> when what it asked and answered is to be erased (Unix seconds)
    erasures: dict[str, float] = field(default_factory=dict)
    #: task id -> (highest attempt, what went wrong)
    troubled: dict[str, tuple[int, History]] = field(default_factory=dict)
