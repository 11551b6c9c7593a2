"""Tasks that travel together, and where their outcomes arrive: a hundred thousand need a hundred.

Source: ``docs/PROTOCOL.md``, Submit and Outcomes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from d8mesh.core.protocol.messages import Group, Refused
from d8mesh.core.protocol.task import parse_id
from d8mesh.errors import InvalidTaskError, ProtocolError, error_of


class TaskOutcome(NamedTuple):
    """How a task ended: one of the states of `core.protocol.messages`, its recorded result."""

    state: int
    payload: bytes


@dataclass(slots=True, eq=False)
class Submission:
    """Tasks submitted together, with consecutive counters, and their outcomes.

    While it is open, callers add tasks (`grow`); from `ClientSession.submit` on the session alone
    changes it, but for `is_told`, `fresh`, and payloads that are let go.
    """

    session: str
    first: int
    groups: list[Group]  #: empty once it is settled
    key: str = ""
    digest: bytes = b""
    is_watched: bool = True
    #: the submitter listens to the partial output of its tasks
    is_listened: bool = False
    #: refused for good when it still has to wait for room then (monotonic seconds); None: never
    give_up: float | None = None
    is_accepted: bool = False
    count: int = field(init=False)
    size_bytes: int = field(init=False)  #: of the data
    #: `states[i]` is 0 until the outcome of task i is known, then a state of `messages`
    states: bytearray = field(init=False)
    payloads: list[bytes | None] = field(init=False)
    missing: int = field(init=False)
    #: what the orchestrator has to say of it, beside accepting it
    warnings: tuple[str, ...] = field(init=False, default=())
    #: the tasks whose outcomes have come since somebody looked here; None: nobody does
    fresh: list[int] | None = field(init=False, default=None)
    is_repeat: bool = field(init=False, default=False)
    refusal: Refused | None = field(init=False, default=None)
    #: somebody was told of the refusal
    is_told: bool = field(init=False, default=False)
    #: of a repeated idempotency key: the first task of the first time
    accepted_as: tuple[str, int] | None = field(init=False, default=None)
    #: when it was last sent (monotonic seconds; 0: never), and whether that was not the first time
    sent: float = field(init=False, default=0.0)
    is_resent: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        # Without groups it is somebody else's task.
        self.count = self.missing = sum([len(each.payloads) for each in self.groups]) or 1
        self.size_bytes = sum([sum(map(len, each.payloads)) for each in self.groups])
        self.states, self.payloads = bytearray(self.count), [None] * self.count

    def grow(self, payload: bytes) -> None:
        """Add a task to the last group."""
        self.groups[-1].payloads.append(payload)
        self.states.append(0)
        self.payloads.append(None)
        self.count += 1
        self.missing += 1
        self.size_bytes += len(payload)

    @property
    def counters(self) -> tuple[int, int]:
        """The counter of its first task, and the one behind its last."""
        return self.first, self.first + self.count

    def task_id(self, index: int) -> str:
        """Return the id of task `index`."""
        session, first = self.accepted_as or (self.session, self.first)
        return f"{session}-{first + index}"

    def index_of(self, task_id: str) -> int:
        """Return which of its tasks `task_id` is; it must be one of them."""
        _, first = self.accepted_as or (self.session, self.first)
        return int(task_id[len(self.session) + 1 :]) - first

    @property
    def is_settled(self) -> bool:
        """True once the submit was accepted or refused for good."""
        return self.is_accepted or self.refusal is not None

    def is_known(self, index: int) -> bool:
        """Return whether the outcome of task `index` is here, or never comes: it was refused."""
        return bool(self.states[index]) or self.refusal is not None

    def outcome(self, index: int) -> TaskOutcome:
        """Return how task `index` ended, as far as that is known."""
        return TaskOutcome(self.states[index], self.payloads[index] or b"")

    def accept(self, session: str, first: int, *, is_repeat: bool) -> None:
        """Note that the tasks are on the orchestrator's disk, under these ids."""
        self.is_accepted, self.is_repeat = True, is_repeat
        self.groups = []
        if (session, first) != (self.session, self.first):
            self.accepted_as = (session, first)

    def refuse(self, refusal: Refused) -> None:
        """Note that none of the tasks was accepted."""
        self.refusal = refusal
        self.groups = []

    def raise_refusal(self) -> None:
        """Raise what it was refused with, if it was.

        Raises:
            TaskRejectedError: it was.
        """
        if self.refusal is not None:
            self.is_told = True
            raise error_of(self.refusal.code, self.refusal.message)

    def note(self, index: int, state: int, payload: bytes) -> bool:
        """Note how task `index` ended; False if that was known."""
        if self.states[index]:
            return False
        self.states[index] = state
        self.payloads[index] = payload
        self.missing -= 1
        fresh = self.fresh  # once: whoever looks there may stop just now
        if fresh is not None:
            fresh.append(index)
        return True

    def awaited(self) -> Iterator[str]:
        """Yield the ids whose outcome is still unknown."""
        for index, state in enumerate(self.states):
            if not state:
                yield self.task_id(index)


def awaiting(task_id: str) -> Submission:
    """Return a submission in which the outcome of any one task can arrive.

    Raises:
        InvalidTaskError: that is no text.
        UnknownTaskError: that is no id of a task.
    """
    if not isinstance(task_id, str):
        raise InvalidTaskError(f"task id: saw {task_id!r:.80}, expected a text")
    key = parse_id(task_id)
    return Submission(key.session, key.n, [], is_accepted=True)


def counter_of(text: str) -> int:
    """Return the counter that a task id ends in.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise ProtocolError(f"a task id ends in a number: saw {text[:40]!r}") from None
