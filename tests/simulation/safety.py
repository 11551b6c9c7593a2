"""What must never happen, checked whenever something is committed, told or restored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import msgspec

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.erasures import rest_of
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import (
    Adopted,
    Assigned,
    Cancelled,
    Completed,
    Erased,
    ErasureSet,
    Fact,
    Failed,
    Pruned,
    Recounted,
    Requeued,
    Submitted,
)
from tests.core.invariants import check
from tests.simulation.causes import Causes

#: What is kept of a result that was delivered, and what becomes of that.
REST: Final = msgspec.msgpack.encode({"success": True})
ERASED: Final = rest_of(REST)
_ENDS: Final = {Completed: 1, Failed: 2, Cancelled: 3}
_WORDS: Final = {"completed": 1, "failed": 2, "cancelled": 3}


class Violation(AssertionError):
    """A promise was broken; the message names the seed and tells the story of the task."""


@dataclass(slots=True)
class Owed:
    """What must be on the disk when somebody is told that his results are."""

    #: tasks that must have an outcome
    outcomes: list[str] = field(default_factory=list)
    #: tasks that must not be where they were: how often they had moved before
    moves: dict[str, int] = field(default_factory=dict)


class Safety:
    """All that is on the disks, and what may be said of it.

    Args:
        seed: names the history in a violation.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.now = 0.0
        self.causes = Causes(self.fail)
        #: task id -> payload, of everything committed
        self.accepted: dict[str, bytes] = {}
        self.fenced: set[str] = set()
        self.outcomes: dict[str, tuple[int, bytes]] = {}
        #: how often a task has left the hands that it was in
        self.moves: Counter[str] = Counter()
        self.pruned: set[str] = set()
        #: orchestrator and key -> the tasks that the key stands for
        self.keys: dict[str, list[str]] = {}
        #: (task id, result) of every success that a handler really produced
        self.produced: set[tuple[str, bytes]] = set()
        #: tasks that a client says are delivered, those that were so for sure, those that are to be
        #: erased, and those that are
        self._deliveries: set[str] = set()
        self._acknowledged: set[str] = set()
        self._to_erase: set[str] = set()
        self._erased: set[str] = set()
        self._home: dict[str, str] = {}
        self._accepted_at: dict[str, float] = {}
        self._current: dict[str, int] = {}
        self._story: dict[str, list[str]] = {}

    # ---------------------------------------------------------------- the story

    def note(self, task_id: str, what: str) -> None:
        """Add a line to the story of a task."""
        self._story.setdefault(task_id, []).append(f"{self.now:8.2f} {what}")

    def fail(self, task_id: str, why: str) -> NoReturn:
        """A promise was broken for this task."""
        lines = "\n".join(self._story.get(task_id, ["(nothing is known of it)"]))
        raise Violation(f"seed {self._seed}: {task_id}: {why}\n{lines}")

    def whole_story(self) -> list[str]:
        """Return all lines of all stories."""
        return [f"{task_id} {line}" for task_id, told in self._story.items() for line in told]

    # -------------------------------------------------------------------- the disk

    def committed(self, name: str, facts: Sequence[Fact]) -> None:
        """These facts reached the disk of an orchestrator."""
        for fact in facts:
            match fact:
                case Submitted():
                    self._submitted(name, fact)
                case Assigned() | Adopted() | Requeued() | Recounted():
                    self._moved(name, fact)
                case Completed() | Failed() | Cancelled():
                    self._ended(name, fact)
                case Pruned():
                    for session, first, count in fact.batches:
                        self.pruned.update(f"{session}-{first + n}" for n in range(count))
                case ErasureSet():
                    self._to_erase.update(fact.ids)
                case Erased():
                    self._gone(fact)
                case _:
                    pass

    def _gone(self, fact: Erased) -> None:
        for task_id in fact.ids:
            self.note(task_id, "erased")
            if task_id not in self._deliveries:
                self.fail(task_id, "was erased and nobody had it delivered")
            if task_id not in self.outcomes:
                self.fail(task_id, "was erased and has no outcome")
            self._erased.add(task_id)

    def deliver(self, task_id: str) -> None:
        """A client is about to say that this task is delivered."""
        self._deliveries.add(task_id)

    def delivered(self, task_id: str) -> None:
        """A client was told that this is on the disk."""
        self.note(task_id, "its delivery was acknowledged")
        if not self._to_erase | self._erased | self.pruned >= {task_id}:
            self.fail(task_id, "its delivery was acknowledged and nothing of it is on disk")
        self._acknowledged.add(task_id)

    def unerased(self) -> set[str]:
        """Return what is still to be erased of what was acknowledged as delivered."""
        return self._acknowledged - self._erased - self.pruned

    def _moved(self, name: str, fact: Assigned | Adopted | Requeued | Recounted) -> None:
        for task_id, n in zip(fact.ids, fact.ns, strict=True):
            match fact:
                case Assigned():
                    self._current[task_id] = n
                    self.causes.handed_out(name, task_id, fact.worker_id, n)
                    self.note(task_id, f"handed out to {fact.worker_id}, attempt {n}")
                case Adopted():
                    self._current[task_id] = max(n, self._current.get(task_id, 0))
                    self.causes.handed_out(name, task_id, fact.worker_id, n)
                    self.note(task_id, f"goes on at {fact.worker_id}")
                case Requeued():
                    self._current.pop(task_id, None)
                    self.moves[task_id] += 1
                    self.note(task_id, f"waits again: {fact.why} ({fact.worker_id})")
                case Recounted():
                    self.note(task_id, f"lost with {fact.worker_id} after all: {fact.is_loss}")
        if isinstance(fact, Requeued):
            self.causes.requeued(name, fact)
        elif isinstance(fact, Recounted):
            self.causes.recounted(fact)

    def _submitted(self, name: str, fact: Submitted) -> None:
        for n, payload in enumerate(fact.payloads):
            task_id = f"{fact.session}-{fact.first + n}"
            self.note(task_id, f"accepted by {name}")
            if task_id in self.accepted:
                self.fail(task_id, "was accepted twice")
            self.accepted[task_id] = payload
            self._home[task_id] = name
            self.causes.accepted(name, task_id, fact)
            self._accepted_at[task_id] = self.now
            if fact.spec.is_fenced:
                self.fenced.add(task_id)
        if fact.key:
            ids = [f"{fact.session}-{fact.first + n}" for n in range(fact.key_count)]
            known = self.keys.get(f"{name} {fact.key}", ids)
            if known != ids and not self.pruned.issuperset(known):
                self.fail(ids[0], f"the key {fact.key} has made tasks before: {known}")
            self.keys[f"{name} {fact.key}"] = ids

    def _ended(self, name: str, fact: Completed | Failed | Cancelled) -> None:
        for task_id, n, payload in zip(fact.ids, fact.ns, fact.payloads, strict=True):
            self.note(task_id, f"recorded: {type(fact).__name__}")
            if task_id not in self.accepted:
                self.fail(task_id, "has an outcome and was never accepted")
            if task_id in self.outcomes:
                self.fail(task_id, "has two outcomes")
            self.outcomes[task_id] = (_ENDS[type(fact)], payload)
            self.moves[task_id] += 1
            if not isinstance(fact, Completed):
                self.causes.ended(name, task_id, payload, fact)
            else:
                if (task_id, payload) not in self.produced:
                    self.fail(task_id, "completed with a result that nobody made")
                if task_id in self.fenced and self._current.get(task_id) != n:
                    self.fail(task_id, f"is fenced and was finished by attempt {n}")
                told = msgspec.msgpack.decode(payload)
                if told["output"] != msgspec.msgpack.decode(self.accepted[task_id]):
                    self.fail(task_id, f"has the result of another: {told}")

    def restored(self, dispatcher: Dispatcher) -> None:
        """An orchestrator has started: it must know all that it had accepted."""
        name, task_table = dispatcher.state.policy.broker_id, dispatcher.state.task_table
        check(dispatcher)
        for task_id, home in self._home.items():
            if home != name:
                continue
            is_open = task_id not in self.outcomes
            if is_open != (task_table.state_of(task_id) is not None):
                self.fail(task_id, f"is {'not ' * is_open}there after a restart")
        own = [task_id for task_id, home in self._home.items() if home == name]
        self.causes.restored(dispatcher.state.policy, own, dispatcher.state.at)
        totals = task_table.totals
        ended = totals.completed + totals.failed + totals.cancelled
        if (totals.submitted, ended) != (len(own), sum(i in self.outcomes for i in own)):
            self.fail(name, f"counts wrongly after a restart: {totals}")

    # ------------------------------------------------------------------ what is said

    def told(self, name: str, message: m.Message, owed: Owed | None) -> None:
        """An orchestrator says this, now: what it promises must be on its disk.

        `owed` is what it was told of, if this message says that it is on the disk.
        """
        if owed is not None:
            self._check_done(owed)
        match message:
            case m.Accepted():
                task_id = f"{message.session}-{message.first}"
                self.note(task_id, "acknowledged")
                if task_id not in self.accepted:
                    self.fail(task_id, "was acknowledged and is not on disk")
            case m.Welcome():
                for task_id in message.dropped_ids:
                    self._dropped(task_id, message.broker_id)
            case m.Outcomes():
                for task_id, state, payload in zip(
                    message.ids, message.states, message.payloads, strict=True
                ):
                    self.outcome(task_id, state, payload)
            case m.Placed():
                self.causes.placed = set(message.ids)
            case m.Work():
                self.causes.given(name, message)
            case m.Answer(code="", body={"task_id": str(task_id), **rest}):
                self._answered(task_id, rest)
            case _:
                pass

    def _dropped(self, task_id: str, name: str) -> None:
        """A worker is told to forget what it holds of a task, maybe its only result.

        What was accepted a moment ago can have been unknown to the same wake-up when the worker
        came: an early assignment of before a crash.
        """
        is_own = self._home.get(task_id) == name and self._accepted_at[task_id] < self.now
        if is_own and task_id not in self.fenced and task_id not in self.outcomes:
            self.fail(task_id, "a worker is to drop it and no outcome is on disk")

    def _check_done(self, owed: Owed) -> None:
        for task_id in owed.outcomes:
            if task_id in self.accepted and task_id not in self.outcomes:
                self.fail(task_id, "its result was acknowledged and is not on disk")
        for task_id, moves in owed.moves.items():
            if task_id in self.accepted and self.moves[task_id] == moves:
                self.fail(task_id, "its failure was acknowledged and has changed nothing on disk")

    def _answered(self, task_id: str, rest: dict[str, object]) -> None:
        """An answer speaks of a task: a cancel, a replay, a status."""
        state = _WORDS.get(str(rest.get("state")))
        if not rest and task_id not in self.accepted:
            self.fail(task_id, "is named as a replay and is not on disk")
        if state is not None and self.outcomes.get(task_id, (0, b""))[0] != state:
            self.fail(task_id, f"is said to be {rest['state']} and is not on disk as that")

    def outcome(self, task_id: str, state: int, payload: bytes) -> None:
        """Somebody is told how a task stands."""
        known = self.outcomes.get(task_id)
        if state == m.PRUNED_STATE:
            if task_id not in self.pruned or known is None:
                self.fail(task_id, "is said to be pruned and is not")
        elif state == m.UNKNOWN_STATE:
            if task_id in self.accepted:
                self.fail(task_id, "is said to be unknown and was accepted")
        elif known != (state, payload) and not (
            task_id in self._erased and known is not None and (state, payload) == (known[0], ERASED)
        ):
            self.fail(task_id, f"its outcome is {known} and was told as {(state, payload)}")
