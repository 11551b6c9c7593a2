"""What a task is, what can happen to it, and which fact may follow which state.

The state of tasks is the fold of the facts, in memory (`core.broker.task_table`) and on disk
(`edge.sqlite`). They come in batches: one fact tells of many tasks in columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from d8mesh.errors import IllegalTransitionError, UnknownTaskError

#: Largest counter of a task id: with the number of a session it shall fit 63 bits.
MAX_COUNTER: Final = 2**40 - 1
#: ``SESSION-N``; see `core.protocol.messages`.
_TASK_ID: Final = re.compile(r"([0-9a-v]{16})-(0|[1-9][0-9]{0,12})", re.ASCII)


class TaskState(Enum):
    """Where a task stands; the values are what ``state`` says in REST answers."""

    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing can change the task any more."""
        return self in _FINAL

    @property
    def documented(self) -> str:
        """The ``status`` word of the documented REST for this state."""
        return _DOCUMENTED[self]


_FINAL: Final = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
_DOCUMENTED: Final = {
    TaskState.QUEUED: "pending",
    TaskState.DELAYED: "pending",
    TaskState.RUNNING: "assigned",
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "failed",
}


class Spec(Struct, frozen=True, gc=False):
    """What the tasks of one batch share; stored with the batch.

    `deadline_at` and `run_at` are Unix seconds; `max_attempts` counts errors and losses.
    """

    type: str
    priority: int
    max_attempts: int
    model: str = ""
    deadline_at: float | None = None
    run_at: float | None = None
    is_fenced: bool = False
    replay_of: str = ""
    source: str = ""  #: where they came from, for people: see `core.protocol.source`


#: What it says of an attempt that it ended without an error: nothing (it was called back, or cut
#: off); it was given back in good order; it was given back and should have run; it was given back
#: for a reason that has nothing to do with it, and may be again and again.
UNRETURNED, ORDERLY, SUSPECT, EXCUSED = 0, 1, 2, 3


class Wait(NamedTuple):
    """How long tasks that were taken back wait, and what their coming back is counted as."""

    pause_s: float = 0.0
    returned: int = UNRETURNED
    is_cut: bool = False


AT_ONCE: Final = Wait()


class TaskKey(NamedTuple):
    """The two halves of a task id."""

    session: str
    n: int


def parse_id(task_id: str) -> TaskKey:
    """Return the session and counter of `task_id`.

    Raises:
        UnknownTaskError: it is not of the form ``SESSION-N``, or no counter goes that far.
    """
    match = _TASK_ID.fullmatch(task_id)
    if match is None or (n := int(match[2])) > MAX_COUNTER:
        raise UnknownTaskError
    return TaskKey(match[1], n)


# ------------------------------------------------------------------------- facts


class Submitted(Struct, frozen=True, gc=False):
    """A batch was accepted: tasks ``session-first`` … with these payloads."""

    session: str
    first: int
    spec: Spec
    payloads: list[bytes]
    at: float
    key: str = ""
    digest: bytes = b""
    #: how many tasks the idempotency key covers, this batch being its first
    key_count: int = 0


class Due(Struct, frozen=True, gc=False):
    """Delayed tasks, or the fresh tasks of whole batches (`session`, `first`), may run now.

    Not stored: after a restart the clock says it again.
    """

    ids: list[str]
    batches: list[tuple[str, int]]


class Assigned(Struct, frozen=True, gc=False):
    """Attempts `ns[i]` of `ids[i]` went to a worker; `number` counts the assignments of all time.

    `is_needed`: the worker has no token, so its report is known by this record only.
    """

    number: int
    worker_id: str
    ids: list[str]
    ns: list[int]
    at: float
    is_needed: bool = False


class _OfWorker(Struct, frozen=True, gc=False):
    """What attempts `ns[i]` of `ids[i]` at a worker came to."""

    worker_id: str
    ids: list[str]
    ns: list[int]


class Adopted(_OfWorker, frozen=True, gc=False):
    """A worker came back holding these attempts, and they go on there.

    `is_needed`: as of `Assigned`.
    """

    is_needed: bool = False


class Requeued(_OfWorker, frozen=True, gc=False):
    """The attempts ended without an outcome and the tasks wait again.

    `is_counted`: an error or the loss of the worker, which use up attempts; `is_loss`: the
    worker vanished with them. `not_before_at`: when they may run again (Unix seconds, 0: now).
    `returned`: one of UNRETURNED, ORDERLY, SUSPECT, EXCUSED. `traceback`: of the handler's error,
    if told. `is_cut`: the worker fell silent with them and nobody was heard; not stored.
    """

    why: str
    at: float
    is_counted: bool = False
    is_loss: bool = False
    not_before_at: float = 0.0
    returned: int = 0
    traceback: str = ""
    is_cut: bool = False


class Recounted(_OfWorker, frozen=True, gc=False):
    """It turned out whether attempts that were taken back were lost with their worker.

    `is_loss`: they were, and use up attempts now; else it never died, and they do no longer.
    """

    is_loss: bool


class Completed(_OfWorker, frozen=True, gc=False):
    """Attempts `ns[i]` succeeded; `payloads[i]` is the recorded result."""

    payloads: list[bytes]
    at: float


class Failed(_OfWorker, frozen=True, gc=False):
    """The tasks have failed for good; `payloads` are the recorded results."""

    payloads: list[bytes]
    at: float
    why: str


class Cancelled(Struct, frozen=True, gc=False):
    """The tasks were cancelled by their user."""

    ids: list[str]
    ns: list[int]
    payloads: list[bytes]
    at: float


class Enrolled(Struct, frozen=True, gc=False):
    """A polling worker registered, or changed its registration; survives restarts."""

    worker_id: str
    worker_type: str
    capabilities: bytes  #: as `records.registration` makes it


class Dismissed(Struct, frozen=True, gc=False):
    """A polling worker unregistered."""

    worker_id: str


class Closed(Struct, frozen=True, gc=False):
    """All tasks of these batches (`session`, `first`) are finished."""

    batches: list[tuple[str, int]]


class Pruned(Struct, frozen=True, gc=False):
    """Finished batches (`session`, `first`, `count`) were forgotten by the retention rules."""

    batches: list[tuple[str, int, int]]
    at: float


class ErasureSet(Struct, frozen=True, gc=False):
    """What these tasks asked and answered was delivered, and is to be erased at `due_at`.

    `payloads` are kept of their results then. Of a task that is not finished by then: when it is.
    """

    ids: list[str]
    payloads: list[bytes]
    due_at: float


class Erased(Struct, frozen=True, gc=False):
    """What these finished tasks asked and answered is gone; facts and figures stay.

    `payloads` are kept of their results; empty: what `ErasureSet` said.
    """

    ids: list[str]
    payloads: list[bytes]


class AssignmentsSettled(Struct, frozen=True, gc=False):
    """No assignment numbered below `below` is still running."""

    below: int


class WorkersMissed(Struct, frozen=True, gc=False):
    """All workers that a start waits for: `worker_ids[i]` for `waited_s[i]` seconds by now.

    Those of earlier starts count, if the worker was not back in between. No entry: none is
    waited for any more. It stands for all that was said before.
    """

    worker_ids: list[str]
    waited_s: list[float]


TaskFact: TypeAlias = (
    Due | Assigned | Adopted | Requeued | Recounted | Completed | Failed | Cancelled
)
_OfDoors: TypeAlias = ErasureSet | Erased
_OtherFact: TypeAlias = Closed | Pruned | AssignmentsSettled | WorkersMissed | _OfDoors
Fact: TypeAlias = Submitted | TaskFact | Enrolled | Dismissed | _OtherFact

_Q, _D, _R = TaskState.QUEUED, TaskState.DELAYED, TaskState.RUNNING

#: (state, fact) -> state. Requeued leads to DELAYED instead when it names a time to come.
#: A waiting task can complete: an attempt thought lost may still hand in the first valid result.
TRANSITIONS: Final[Mapping[tuple[TaskState, type], TaskState]] = MappingProxyType(
    {
        (_D, Due): _Q,
        (_Q, Assigned): _R,
        (_Q, Adopted): _R,
        (_D, Adopted): _R,
        (_R, Adopted): _R,
        (_R, Requeued): _Q,
        **{(state, Recounted): state for state in (_Q, _D, _R)},
        **{(state, Completed): TaskState.COMPLETED for state in (_Q, _D, _R)},
        **{(state, Failed): TaskState.FAILED for state in (_Q, _D, _R)},
        **{(state, Cancelled): TaskState.CANCELLED for state in (_Q, _D, _R)},
    }
)


def next_state(state: TaskState, fact: type[TaskFact]) -> TaskState:
    """Return the state that follows `state` after `fact`.

    Raises:
        IllegalTransitionError: the fact does not fit the state.
    """
    after = TRANSITIONS.get((state, fact))
    if after is None:
        raise IllegalTransitionError(
            f"a {state.value} task cannot be {fact.__name__}: allowed are "
            + ", ".join(sorted(f.__name__ for s, f in TRANSITIONS if s is state))
        )
    return after
