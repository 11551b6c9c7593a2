"""A store in memory: what a store must do, written as plainly as can be.

A `MemoryDisk` is what outlives it. With a delay it commits on a thread of its own, as a store
across a network would.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from msgspec import structs

from d8mesh.core.broker.records import Batch, History, Totals, WorkerRecord
from d8mesh.core.broker.store import (
    MAX_PAST_ATTEMPTS,
    BadCursor,
    BatchPayloads,
    DetailsOf,
    EndOf,
    FinishedStates,
    FinishedTask,
    FoldLog,
    OldBatches,
    OutcomesOf,
    PageOf,
    PastAttempt,
    PayloadsOf,
    PrunableBatches,
    PrunedTask,
    Question,
    Restored,
    StoreAnswer,
    TaskDetails,
    TaskPage,
)
from d8mesh.core.protocol.messages import FINAL_STATES, PRUNED_STATE, UNKNOWN_STATE
from d8mesh.core.protocol.source import source_of
from d8mesh.core.protocol.task import (
    Assigned,
    AssignmentsSettled,
    Cancelled,
    Closed,
    Completed,
    Dismissed,
    Enrolled,
    Erased,
    ErasureSet,
    Fact,
    Failed,
    Pruned,
    Recounted,
    Requeued,
    Submitted,
    TaskState,
    WorkersMissed,
    parse_id,
)
from d8mesh.errors import JournalError, JournalHeldError, UnknownTaskError

CODES: Final = {state: code for code, state in FINAL_STATES.items()}
_STATE_OF: Final = {
    Completed: TaskState.COMPLETED,
    Failed: TaskState.FAILED,
    Cancelled: TaskState.CANCELLED,
}


@dataclass(slots=True)
class MemoryDisk:
    """All that was committed, and who has it."""

    broker_id: str = "orch-memory"
    secret: bytes = bytes(32)
    epoch: int = 0
    commits: list[list[Fact]] = field(default_factory=list)
    is_held: bool = False


@dataclass(slots=True)
class _Kept:
    """A batch."""

    fact: Submitted
    is_closed: bool = False

    @property
    def ids(self) -> list[str]:
        return [f"{self.fact.session}-{n}" for n in range(self.fact.first, self.end)]

    @property
    def end(self) -> int:
        return self.fact.first + len(self.fact.payloads)


@dataclass(slots=True)
class _End:
    """How a task ended."""

    state: TaskState
    n: int
    worker_id: str | None
    at: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Setback:
    """An attempt that ended without a result."""

    n: int
    worker_id: str | None
    at: float
    is_counted: bool
    is_loss: bool
    why: str
    returned: int = 0
    pause_s: float = 0.0
    traceback: str | None = None


class _Fold:
    """What some facts add up to."""

    def __init__(self, commits: Iterable[Sequence[Fact]]) -> None:
        self.batches: list[_Kept] = []  #: in the order of acceptance
        self.ends: dict[str, _End] = {}
        self.setbacks: defaultdict[str, list[_Setback]] = defaultdict(list)
        self.assignments: list[Assigned] = []
        self.workers: defaultdict[str, WorkerRecord] = defaultdict(WorkerRecord)
        self.totals = Totals()
        self.keys: dict[str, tuple[bytes, str, int, int]] = {}
        self.pruned: list[tuple[str, int, int, float]] = []
        self.sessions: set[str] = set()
        self.waited: dict[str, float] = {}
        #: task id -> when what it asked and answered is to be erased, and what is kept
        self.erasures: dict[str, tuple[float, bytes]] = {}
        self.erased: set[str] = set()
        for facts in commits:
            for fact in facts:
                self.apply(fact)

    def apply(self, fact: Fact) -> None:
        match fact:
            case Submitted():
                self._submitted(fact)
            case Assigned():
                self.assignments.append(fact)
                self.workers[fact.worker_id]  # from now on it is known
            case Requeued():
                self._requeued(fact)
            case Recounted():
                self._recounted(fact)
            case Completed() | Failed() | Cancelled():
                self._ended(fact)
            case Enrolled() | Dismissed():
                self._registered(fact)
            case Closed():
                for kept in self.batches:
                    kept.is_closed |= (kept.fact.session, kept.fact.first) in fact.batches
            case Pruned():
                self._pruned(fact)
            case AssignmentsSettled():
                self.assignments = [each for each in self.assignments if each.number >= fact.below]
            case WorkersMissed():
                self.waited = dict(zip(fact.worker_ids, fact.waited_s, strict=True))
            case _:
                self._delivered(fact)

    def _submitted(self, fact: Submitted) -> None:
        if self.batch_of(f"{fact.session}-{fact.first}") is not None:
            raise JournalError(f"a batch at {fact.session}-{fact.first} is there already")
        self.batches.append(_Kept(fact))
        self.sessions.add(fact.session)
        self.totals.submitted += len(fact.payloads)
        if fact.key:
            self.keys[fact.key] = (fact.digest, fact.session, fact.first, fact.key_count)

    def _registered(self, fact: Enrolled | Dismissed) -> None:
        record = self.workers[fact.worker_id]
        if isinstance(fact, Enrolled):
            record.worker_type, record.capabilities = fact.worker_type, fact.capabilities
        else:
            record.capabilities = None

    def _requeued(self, fact: Requeued) -> None:
        pause_s = max(0.0, fact.not_before_at - fact.at) if fact.not_before_at else 0.0
        for task_id, n in zip(fact.ids, fact.ns, strict=True):
            setback = _Setback(
                n,
                fact.worker_id,
                fact.at,
                fact.is_counted,
                fact.is_loss,
                fact.why,
                fact.returned,
                pause_s,
                fact.traceback or None,
            )
            self.setbacks[task_id].append(setback)

    def _recounted(self, fact: Recounted) -> None:
        for task_id, n in zip(fact.ids, fact.ns, strict=True):
            setbacks = self.setbacks[task_id]
            for index, each in reversed(list(enumerate(setbacks))):
                if (each.n, each.worker_id) == (n, fact.worker_id) and each.is_loss != fact.is_loss:
                    setbacks[index] = replace(each, is_counted=fact.is_loss, is_loss=fact.is_loss)
                    break

    def _ended(self, fact: Completed | Failed | Cancelled) -> None:
        worker_id = None if isinstance(fact, Cancelled) else fact.worker_id or None
        state, count = _STATE_OF[type(fact)], len(fact.ids)
        for task_id, n, payload in zip(fact.ids, fact.ns, fact.payloads, strict=True):
            if task_id in self.ends:
                raise JournalError(f"{task_id} has an outcome already")
            self.ends[task_id] = _End(state, n, worker_id, fact.at, payload)
            if isinstance(fact, Failed):
                setback = _Setback(n, worker_id, fact.at, True, False, fact.why)
                self.setbacks[task_id].append(setback)
        match fact:
            case Completed():
                self.totals.completed += count
                self.workers[fact.worker_id].completed += count
            case Failed():
                self.totals.failed += count
                if worker_id:
                    self.workers[worker_id].failed += count
            case Cancelled():
                self.totals.cancelled += count

    def _delivered(self, fact: Fact) -> None:
        if not isinstance(fact, ErasureSet | Erased):
            return  # it tells memory only
        for task_id, rest in zip(fact.ids, fact.payloads, strict=True):
            if isinstance(fact, ErasureSet):
                self.erasures.setdefault(task_id, (fact.due_at, rest))
            else:
                _, was_set = self.erasures.pop(task_id, (0.0, b""))
                self._erase(task_id, rest or was_set)

    def _erase(self, task_id: str, rest: bytes) -> None:
        found = self.batch_of(task_id)
        if found is None or task_id in self.erased or task_id not in self.ends:
            return
        kept, index = found
        if kept.fact.spec.source:
            self.erased.add(task_id)
            payloads = list(kept.fact.payloads)
            payloads[index] = bytes(len(payloads[index]))
            kept.fact = structs.replace(kept.fact, payloads=payloads)
            self.ends[task_id] = replace(self.ends[task_id], payload=rest)
            self.setbacks[task_id] = [
                replace(each, why=each.why and "erased", traceback=each.traceback and "erased")
                for each in self.setbacks.get(task_id, [])
            ]

    def _pruned(self, fact: Pruned) -> None:
        for session, first, count in fact.batches:
            for n in range(first, first + count):
                self.erasures.pop(f"{session}-{n}", None)
                self.ends.pop(f"{session}-{n}", None)
                self.setbacks.pop(f"{session}-{n}", None)
            self.keys = {k: what for k, what in self.keys.items() if what[1:3] != (session, first)}
            place = (session, first)
            self.batches = [b for b in self.batches if (b.fact.session, b.fact.first) != place]
            self.pruned.append((session, first, count, fact.at))

    def batch_of(self, task_id: str) -> tuple[_Kept, int] | None:
        """Return the batch of a task and its index there, or None."""
        try:
            session, n = parse_id(task_id)
        except UnknownTaskError:
            return None
        for kept in self.batches:
            if kept.fact.session == session and kept.fact.first <= n < kept.end:
                return kept, n - kept.fact.first
        return None

    # ------------------------------------------------------------------- a start

    def restored(self, epoch: int, secret: bytes) -> Restored:
        totals, open_batches = self.totals, [kept for kept in self.batches if not kept.is_closed]
        restored = Restored(epoch, secret, totals=replace(totals), keys=dict(self.keys))
        restored.next_assignment = 1 + max((each.number for each in self.assignments), default=0)
        pruned = sum(count for _, _, count, _ in self.pruned)
        restored.kept_finished = totals.completed + totals.failed + totals.cancelled - pruned
        restored.workers = {name: replace(record) for name, record in self.workers.items()}
        restored.sessions, restored.waited = len(self.sessions), dict(self.waited)
        used = [(b.fact.session, b.fact.first, len(b.fact.payloads)) for b in self.batches]
        for session, first, count in sorted([*used, *(each[:3] for each in self.pruned)]):
            ranges = restored.accepted.setdefault(session, [])
            if ranges and sum(ranges[-1]) == first:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + count)
            else:
                ranges.append((first, count))
        hands = {
            task_id: (n, each.worker_id)
            for each in self.assignments
            for task_id, n in zip(each.ids, each.ns, strict=True)
        }
        for kept in open_batches:
            fact, ids = kept.fact, kept.ids
            size = sum(map(len, fact.payloads))
            batch = Batch(fact.session, fact.first, len(ids), fact.spec, fact.at, size, 0)
            finished = [index for index, task_id in enumerate(ids) if task_id in self.ends]
            restored.batches.append((batch, finished))
            for task_id in ids:
                if task_id not in self.ends and self.setbacks.get(task_id):
                    restored.troubled[task_id] = self._trouble_of(task_id)
                    if task_id in hands and hands[task_id][0] <= restored.troubled[task_id][0]:
                        del hands[task_id]
        restored.in_flight = hands
        restored.erasures = {task_id: due_at for task_id, (due_at, _) in self.erasures.items()}
        return restored

    def _trouble_of(self, task_id: str) -> tuple[int, History]:
        history, highest = History(), 0
        for each in self.setbacks[task_id]:
            if each.is_counted:
                history.count(each.worker_id or "", each.n, each.why, is_loss=each.is_loss)
            else:
                history.give_back(each.worker_id or "", each.why, each.returned)
            history.not_before_at = each.at + each.pause_s if each.pause_s else 0.0
            history.pause_s = each.pause_s
            highest = max(highest, each.n)
        return highest, history

    # ------------------------------------------------------------------ questions

    def answer(self, question: Question) -> StoreAnswer:
        match question:
            case PayloadsOf(session, first):
                found = self.batch_of(f"{session}-{first}")
                if found is None or found[1] != 0:
                    return None
                return BatchPayloads(list(found[0].fact.payloads))
            case OutcomesOf(ids):
                return FinishedStates(
                    bytes(self._code(task_id) for task_id in ids),
                    [self.ends[i].payload if i in self.ends else b"" for i in ids],
                )
            case EndOf(task_id):
                return self._told(task_id) if task_id in self.ends else self._tombstone(task_id)
            case DetailsOf(task_id):
                return self._details(task_id)
            case PageOf():
                return self._page(question)
            case PrunableBatches():
                return self._prunable(question)
            case FoldLog():
                return None

    def _details(self, task_id: str) -> TaskDetails | PrunedTask | None:
        found = self.batch_of(task_id)
        if found is None:
            return self._tombstone(task_id)
        fact, state = found[0].fact, self.ends[task_id].state if task_id in self.ends else None
        is_erased = task_id in self.erased
        payload = b"" if is_erased else fact.payloads[found[1]]
        return TaskDetails(fact.spec, payload, self._past(task_id), state, is_erased)

    def _code(self, task_id: str) -> int:
        if task_id in self.ends:
            return CODES[self.ends[task_id].state]
        return UNKNOWN_STATE if self._tombstone(task_id) is None else PRUNED_STATE

    def _tombstone(self, task_id: str) -> PrunedTask | None:
        try:
            key = parse_id(task_id)
        except UnknownTaskError:
            return None
        for session, first, count, at in self.pruned:
            if session == key.session and first <= key.n < first + count:
                return PrunedTask(at)
        return None

    def _past(self, task_id: str) -> list[PastAttempt]:
        return [
            PastAttempt(
                each.n,
                each.worker_id,
                each.at,
                each.is_counted,
                each.why,
                round(each.pause_s, 3),
                each.traceback,
            )
            for each in self.setbacks.get(task_id, [])[-MAX_PAST_ATTEMPTS:]
        ]

    def _told(self, task_id: str) -> FinishedTask:
        found = self.batch_of(task_id)
        assert found is not None
        fact, end = found[0].fact, self.ends[task_id]
        is_completed = end.state is TaskState.COMPLETED
        past = self._past(task_id) if not is_completed or end.n > 1 else []
        why = past[-1].error if past and not is_completed else None
        how = (end.state, end.n, end.worker_id, end.at, end.payload)
        is_erased = task_id in self.erased
        return FinishedTask(task_id, fact.spec, fact.at, *how, why, past, is_erased)

    def _page(self, question: PageOf) -> TaskPage | BadCursor:
        if question.cursor and not question.cursor.isdecimal():
            return BadCursor()
        ids = [
            task_id
            for kept in self.batches
            for task_id in kept.ids
            if question.type in ("", kept.fact.spec.type)
            and question.door in ("", source_of(kept.fact.spec.source).door)
            and not (question.is_open and task_id in self.ends)
            and (question.state is None or self._code(task_id) == CODES[question.state])
        ]
        if question.is_newest_first:
            ids.reverse()
        start = int(question.cursor or 0)
        end = start + question.limit
        some = ids[start:end]
        finished = {task_id: self._told(task_id) for task_id in some if task_id in self.ends}
        return TaskPage(some, finished, str(end) if end < len(ids) else None)

    def _prunable(self, question: PrunableBatches) -> OldBatches:
        old, excess = OldBatches([]), question.excess
        closed = [kept for kept in self.batches if kept.is_closed and not self._is_needed(kept)]
        for kept in closed[: question.limit]:
            count = len(kept.fact.payloads)
            ended_at = max(self.ends[task_id].at for task_id in kept.ids)
            if ended_at < question.before_at or excess >= count:
                excess -= count
                old.batches.append((kept.fact.session, kept.fact.first, count))
        return old

    def _is_needed(self, kept: _Kept) -> bool:
        """Whether a key names the batch and another batch of the same submit is there."""
        fact = kept.fact
        reach = range(fact.first + 1, fact.first + fact.key_count) if fact.key else range(0)
        others = (other.fact for other in self.batches if other.fact.session == fact.session)
        return any(other.first in reach for other in others)


class MemoryStore:
    """A store on a `MemoryDisk`.

    Args:
        disk: what is kept.
        wake: called when a commit is durable that was not when `append` returned.
        delay_s: how long after it was begun a commit is durable, those before it too; 0: at once.
        gate: while it is not set nothing becomes durable.
        fail_at: the number of the commit that fails, counted from 1; 0: none.
    """

    def __init__(
        self,
        disk: MemoryDisk,
        wake: Callable[[], None] = lambda: None,
        *,
        delay_s: float = 0.0,
        gate: threading.Event | None = None,
        fail_at: int = 0,
    ) -> None:
        if disk.is_held:
            raise JournalHeldError("the memory is in use by another store")
        disk.is_held = True
        self.disk = disk
        self.broker_id = disk.broker_id
        self._fold = _Fold(disk.commits)
        self._lock = threading.Lock()
        self.begun = self.most_in_flight = self._confirmed = 0
        self._fail_at = fail_at
        self._failure = ""
        self._wake, self._delay_s, self._gate = wake, delay_s, gate
        self._queue: queue.SimpleQueue[tuple[float, list[Fact]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="memory-store")
        if delay_s or gate is not None:
            self._thread.start()

    def restore(self) -> Restored:
        self.disk.epoch += 1
        return self._fold.restored(self.disk.epoch, self.disk.secret)

    def append(self, facts: Sequence[Fact]) -> None:
        self._check()
        self.begun += 1
        self.most_in_flight = max(self.most_in_flight, self.begun - self._confirmed)
        if self._thread.is_alive():
            self._queue.put((time.monotonic() + self._delay_s, list(facts)))
        else:
            self._commit(list(facts))
            self._check()

    def confirmed(self) -> int:
        self._check()
        return self._confirmed

    def ask(self, question: Question) -> StoreAnswer:
        with self._lock:
            return self._fold.answer(question)

    @property
    def needs_wiping(self) -> bool:
        return False

    def wipe(self) -> bool:
        return True

    def free_bytes(self) -> int:
        return 1 << 40

    def close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self.disk.is_held = False

    def _check(self) -> None:
        if self._failure:
            raise JournalError(self._failure)

    def _work(self) -> None:
        while (begun := self._queue.get()) is not None:
            due, facts = begun
            if self._gate is not None:
                self._gate.wait()
            time.sleep(max(0.0, due - time.monotonic()))
            self._commit(facts)
            self._wake()

    def _commit(self, facts: list[Fact]) -> None:
        with self._lock:
            if self._failure:
                return
            try:
                if self._confirmed + 1 == self._fail_at:
                    raise JournalError("the memory is full")
                for fact in facts:
                    self._fold.apply(fact)
            except JournalError as error:
                self._failure = f"cannot write: {error}"
                self._fold = _Fold(self.disk.commits)
            else:
                self.disk.commits.append(facts)
                self._confirmed += 1
