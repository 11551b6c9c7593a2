"""The state of every unfinished task: the fold of the facts, nothing else.

`TaskTable.apply` is the only thing that changes what is known of a task; beside it stands its
`RunningAttempt`, of which no fact tells. A task that was never handed out is not an object: it
is a number in its `Batch` (a hundred thousand queued tasks cost a few hundred objects).
`TaskTable.draw` and `TaskTable.open_task` make it a `TaskRecord` when somebody needs it singly.
Finished tasks live in the store only. Deliberately not here: order (`queue`), workers
(`worker_registry`), who waits for what (`state`).
"""

from __future__ import annotations

import sys
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Final

from d8mesh.core.broker.records import (
    NO_ATTEMPT,
    Batch,
    History,
    Ranges,
    TaskRecord,
    Totals,
    WorkerRecord,
)
from d8mesh.core.protocol import task as facts
from d8mesh.core.protocol.task import Fact, TaskFact, TaskState, next_state, parse_id
from d8mesh.errors import UnknownTaskError

#: Payloads kept in memory for tasks that wait; beyond it they are paged from the store. A
#: million small tasks stay in memory; ten million leave the broker below 300 MB.
PAYLOAD_MEMORY_BYTES: Final = 96 * 1024 * 1024

_QUEUED: Final = TaskState.QUEUED
_RUNNING: Final = TaskState.RUNNING
#: What an unfinished task becomes, whatever it is: looked up once, not for every task.
_ENDS: Final[dict[type[TaskFact], TaskState]] = {
    fact: next_state(_RUNNING, fact) for fact in (facts.Completed, facts.Failed, facts.Cancelled)
}


class TaskTable:
    """All unfinished tasks, and the counts of the finished ones."""

    def __init__(self, *, payload_memory_bytes: int = PAYLOAD_MEMORY_BYTES) -> None:
        self.tasks: dict[str, TaskRecord] = {}
        self.accepted: dict[str, Ranges] = {}
        self.forgotten_sessions = 0  #: that the store names, and whose tasks it forgot
        self.max_sessions = sys.maxsize  #: that the store can name
        self.keys: dict[str, tuple[bytes, str, int, int]] = {}
        #: (session, first) of a batch -> the key that it came with
        self._key_of: dict[tuple[str, int], str] = {}
        self.totals = Totals()
        self.workers: dict[str, WorkerRecord] = {}
        self.queued = 0  #: waiting now, due or not
        self.running = 0
        self.unfinished_bytes = 0
        self.loaded_bytes = 0
        self.kept_finished = 0  #: finished and not pruned
        #: task id -> when what it asked and answered is to be erased (Unix seconds)
        self.erasures: dict[str, float] = {}
        self._payload_memory_bytes = payload_memory_bytes
        self._batches: dict[str, list[tuple[int, Batch]]] = {}
        self._order = 0
        self._emptied: list[Batch] = []

    # ------------------------------------------------------------------ looking up

    def find(self, task_id: str) -> tuple[Batch, int] | None:
        """Return the open batch of `task_id` and its index there, or None.

        A batch is open until its last task is finished, so what is found may be finished.
        """
        key = parse_id(task_id)
        held = self._batches.get(key.session)
        if not held:
            return None
        at = bisect_right(held, key.n, key=_first_of) - 1
        if at < 0:
            return None
        batch = held[at][1]
        index = key.n - batch.first
        return (batch, index) if index < batch.count else None

    def state_of(self, task_id: str) -> TaskState | None:
        """Return the state of an unfinished task; None if it is finished or unknown."""
        task = self.tasks.get(task_id)
        if task is not None:
            return task.state
        found = self.find(task_id)
        if found is None or found[1] < found[0].fresh or found[1] in found[0].gone:
            return None
        return TaskState.DELAYED if found[0].is_delayed else _QUEUED

    def open_task(self, task_id: str) -> TaskRecord | None:
        """Return the unfinished task, made an object if it was not; None if there is none."""
        task = self.tasks.get(task_id)
        if task is not None or self.state_of(task_id) is None:
            return task
        found = self.find(task_id)
        assert found is not None  # state_of has just seen it
        return self._single(*found)

    def batch_at(self, session: str, first: int) -> Batch | None:
        """Return the open batch that starts at `first`."""
        held = self._batches.get(session, [])
        if held and held[-1][0] == first:  # the newest: it has just come in
            return held[-1][1]
        at = bisect_right(held, first, key=_first_of) - 1
        return held[at][1] if at >= 0 and held[at][0] == first else None

    # ------------------------------------------------------- making tasks objects

    def draw(self, batch: Batch, limit: int) -> list[TaskRecord]:
        """Make up to `limit` fresh tasks of `batch` objects, in order; their state stays.

        The payloads of `batch` must be in memory.
        """
        payloads = batch.payloads
        assert payloads is not None
        drawn: list[TaskRecord] = []
        index, end, gone = batch.fresh, batch.count, batch.gone
        prefix, first, tasks, size = f"{batch.session}-", batch.first, self.tasks, 0
        while index < end and len(drawn) < limit:
            if gone and index in gone:
                gone.discard(index)
                index += 1
                continue
            payload = payloads[index]
            size += len(payload)
            payloads[index] = b""
            task = TaskRecord(batch, prefix + str(first + index), payload)
            tasks[task.id] = task
            drawn.append(task)
            index += 1
        while gone and index < end and index in gone:
            gone.discard(index)
            index += 1
        batch.fresh = index
        self.loaded_bytes -= size
        return drawn

    def load(self, batch: Batch, payloads: list[bytes]) -> None:
        """Put the payloads of a batch, one for each of its tasks, back into memory."""
        if batch.payloads is not None:
            return
        payloads = list(payloads)  # the answer of the store stays as it was
        for index in range(batch.count):
            if index < batch.fresh or index in batch.gone:
                task = self.tasks.get(batch.task_id(index))
                if task is not None and task.payload is None:
                    task.payload = payloads[index]
                payloads[index] = b""
        batch.payloads = payloads
        self.loaded_bytes += sum(map(len, payloads))

    def _single(self, batch: Batch, index: int) -> TaskRecord:
        payload = None if batch.payloads is None else batch.payloads[index]
        task = TaskRecord(batch, batch.task_id(index), payload)
        if batch.is_delayed:
            task.state = TaskState.DELAYED
        if batch.payloads is not None:
            self.loaded_bytes -= len(batch.payloads[index])
            batch.payloads[index] = b""
        batch.gone.add(index)
        self.tasks[task.id] = task
        return task

    # ------------------------------------------------------------------- the facts

    def apply(self, fact: Fact) -> None:
        """Change the state as `fact` tells; one that raises changes nothing.

        Raises:
            IllegalTransitionError: a task of the fact is not in a state that allows it.
            UnknownTaskError: a task of the fact is finished or was never submitted.
        """
        self._apply[type(fact)](self, fact)

    def take_emptied(self) -> list[Batch]:
        """Return the batches whose last task finished since the last call."""
        emptied, self._emptied = self._emptied, []
        return emptied

    def _submitted(self, fact: facts.Submitted) -> None:
        count = len(fact.payloads)
        size = sum(map(len, fact.payloads))
        self._order += 1
        batch = Batch(
            fact.session, fact.first, count, fact.spec, fact.at, size, self._order, unfinished=count
        )
        batch.is_delayed = fact.spec.run_at is not None
        if self.loaded_bytes + size <= self._payload_memory_bytes:
            batch.payloads = list(fact.payloads)
            self.loaded_bytes += size
        self._take_in(batch)
        self.totals.submitted += count
        if fact.key:
            self.keys[fact.key] = (fact.digest, fact.session, fact.first, fact.key_count)
            self._key_of[fact.session, fact.first] = fact.key

    def take_keys(self, keys: dict[str, tuple[bytes, str, int, int]]) -> None:
        """Start with these keys: key -> digest, session, first and count of its tasks."""
        self.keys = keys
        self._key_of = {(session, first): key for key, (_, session, first, _) in keys.items()}

    def accept(self, session: str, first: int, count: int) -> None:
        """Remember that these ids are used up."""
        used = self.accepted.get(session)
        if used is None:
            used = self.accepted[session] = Ranges()
        used.add(first, count)

    def _take_in(self, batch: Batch) -> None:
        self.accept(batch.session, batch.first, batch.count)
        held = self._batches.setdefault(batch.session, [])
        if held and held[-1][0] > batch.first:
            insort(held, (batch.first, batch), key=_first_of)
        else:
            held.append((batch.first, batch))
        self.queued += batch.unfinished
        finished = batch.count - batch.unfinished
        self.unfinished_bytes += batch.size_bytes - batch.size_bytes // batch.count * finished

    def restore(self, batch: Batch, finished: Iterable[int]) -> None:
        """Take in a batch as the store has it, but for the tasks that are `finished`."""
        self._order += 1
        batch.order = self._order
        batch.is_delayed = batch.spec.run_at is not None
        batch.gone = set(finished)
        batch.unfinished = batch.count - len(batch.gone)
        self._take_in(batch)

    def restore_task(
        self, task_id: str, n: int, history: History, at: float | None
    ) -> TaskRecord | None:
        """Take in what the store knows of a task beyond its batch.

        Args:
            at: Unix seconds, by which it may have to wait still; None: it is in flight.

        Returns:
            The task, None if it is finished.
        """
        task = self.open_task(task_id)
        if task is None:
            return None
        task.n, task.history = n, history
        if at is not None and history.not_before_at > at and task.state is _QUEUED:
            task.state = TaskState.DELAYED
        return task

    def _due(self, fact: facts.Due) -> None:
        for task, after in self._moved(fact.ids, facts.Due):
            task.state = after
        for session, first in fact.batches:
            batch = self.batch_at(session, first)
            if batch is not None:
                batch.is_delayed = False

    def _assigned(self, fact: facts.Assigned) -> None:
        try:
            tasks = list(map(self.tasks.__getitem__, fact.ids))
        except KeyError:
            tasks = [task for task, _ in self._moved(fact.ids, facts.Assigned)]
        for task in tasks:
            if task.state is not _QUEUED:
                before = task.state
                for moved in tasks:
                    if moved.state is _RUNNING and not moved.worker_id:
                        moved.state = _QUEUED
                next_state(before, facts.Assigned)
            task.state = _RUNNING
        worker_id, number = fact.worker_id, fact.number
        for task, n in zip(tasks, fact.ns, strict=True):
            task.n = n
            task.worker_id = worker_id
            task.assignment = number
        for task in tasks if fact.is_needed else ():
            task.remember().holders.add(worker_id)
        self.queued -= len(tasks)
        self.running += len(tasks)

    def _adopted(self, fact: facts.Adopted) -> None:
        for (task, after), n in zip(self._moved(fact.ids, facts.Adopted), fact.ns, strict=True):
            if task.state is not _RUNNING:
                self.queued -= 1
                self.running += 1
            task.state = after
            task.n, task.worker_id = max(n, task.n), fact.worker_id
            if fact.is_needed:
                task.remember().holders.add(fact.worker_id)

    def _requeued(self, fact: facts.Requeued) -> None:
        for (task, after), n in zip(self._moved(fact.ids, facts.Requeued), fact.ns, strict=True):
            task.state = TaskState.DELAYED if fact.not_before_at else after
            self.running -= 1
            self.queued += 1
            task.worker_id, task.attempt = "", NO_ATTEMPT
            history = task.remember()
            if fact.is_counted:
                history.count(fact.worker_id, n, fact.why, is_loss=fact.is_loss)
            else:
                history.give_back(fact.worker_id, fact.why, fact.returned)
            history.cuts += fact.is_cut
            history.not_before_at = fact.not_before_at
            history.pause_s = max(0.0, fact.not_before_at - fact.at)

    def _recounted(self, fact: facts.Recounted) -> None:
        for (task, _), n in zip(self._moved(fact.ids, facts.Recounted), fact.ns, strict=True):
            history, loss = task.remember(), (fact.worker_id, n)
            if fact.is_loss:
                history.errors += 1
                history.failed_on[fact.worker_id] += 1
                history.losses.add(loss)
            else:
                history.errors -= 1
                history.failed_on -= Counter([fact.worker_id])  # keeps no zeros
                history.losses.discard(loss)

    def _completed(self, fact: facts.Completed) -> None:
        self._finish(fact.ids, facts.Completed)
        self.totals.completed += len(fact.ids)
        self._record(fact.worker_id).completed += len(fact.ids)

    def _failed(self, fact: facts.Failed) -> None:
        self._finish(fact.ids, facts.Failed)
        self.totals.failed += len(fact.ids)
        if fact.worker_id:
            self._record(fact.worker_id).failed += len(fact.ids)

    def _cancelled(self, fact: facts.Cancelled) -> None:
        self._finish(fact.ids, facts.Cancelled)
        self.totals.cancelled += len(fact.ids)

    def _finish(self, ids: list[str], fact: type[TaskFact]) -> None:
        taken = list(map(self.tasks.pop, ids, repeat(None)))
        try:
            fresh = self._take_fresh(ids, taken) if not all(taken) else {}
        except UnknownTaskError:
            self.tasks.update((task.id, task) for task in taken if task is not None)
            raise
        end, running = _ENDS[fact], 0
        for index, task in enumerate(taken):
            if task is None:
                batch = fresh[ids[index]]
            else:
                batch = task.batch
                running += task.state is _RUNNING
                task.state = end
            batch.unfinished -= 1
            self.unfinished_bytes -= batch.size_bytes // batch.count
            if not batch.unfinished:
                self._close(batch)
        self.running -= running
        self.queued -= len(ids) - running
        self.kept_finished += len(ids)

    def _take_fresh(self, ids: list[str], taken: list[TaskRecord | None]) -> dict[str, Batch]:
        """Take those out of their batches that were no objects; return the batches."""
        found: dict[str, tuple[Batch, int]] = {}
        for task_id, task in zip(ids, taken, strict=True):
            if task is not None:
                continue
            place = None if task_id in found else self.find(task_id)
            if place is None or self.state_of(task_id) is None:
                raise UnknownTaskError(f"{task_id} is finished or was never submitted")
            found[task_id] = place
        for batch, index in found.values():
            batch.gone.add(index)
            if batch.payloads is not None:
                self.loaded_bytes -= len(batch.payloads[index])
                batch.payloads[index] = b""
        return {task_id: batch for task_id, (batch, _) in found.items()}

    def _close(self, batch: Batch) -> None:
        self.unfinished_bytes -= batch.size_bytes - batch.size_bytes // batch.count * batch.count
        held = self._batches[batch.session]
        del held[bisect_right(held, batch.first, key=_first_of) - 1]
        if not held:
            del self._batches[batch.session]
        if batch.gone:  # its lane, or the clock of its `run_at`, may hold it for long
            batch.gone, batch.payloads, batch.fresh = set(), [], batch.count
        self._emptied.append(batch)

    def _enrolled(self, fact: facts.Enrolled) -> None:
        record = self._record(fact.worker_id)
        record.worker_type, record.capabilities = fact.worker_type, fact.capabilities

    def _dismissed(self, fact: facts.Dismissed) -> None:
        self._record(fact.worker_id).capabilities = None

    def _pruned(self, fact: facts.Pruned) -> None:
        for session, first, count in fact.batches:
            self.kept_finished -= count
            key = self._key_of.pop((session, first), None)
            if key is not None:
                del self.keys[key]
        if self.erasures:
            gone = {(session, n) for session, n, count in fact.batches for n in range(n, n + count)}
            for task_id in [each for each in self.erasures if parse_id(each) in gone]:
                del self.erasures[task_id]

    def _erasure_set(self, fact: facts.ErasureSet) -> None:
        for task_id in fact.ids:
            self.erasures.setdefault(task_id, fact.due_at)

    def _erased(self, fact: facts.Erased) -> None:
        for task_id in fact.ids if self.erasures else ():
            self.erasures.pop(task_id, None)

    def _unchanged(self, fact: Fact) -> None:
        """These facts tell the store what the task table knows by itself, or has no use for."""

    def _record(self, worker_id: str) -> WorkerRecord:
        record = self.workers.get(worker_id)
        if record is None:
            record = self.workers[worker_id] = WorkerRecord()
        return record

    def _moved(self, ids: list[str], fact: type[TaskFact]) -> list[tuple[TaskRecord, TaskState]]:
        """Return the tasks, made objects, each with the state after `fact`; all or none."""
        after: dict[str, TaskState] = {}
        for task_id in ids:
            before = after.get(task_id) or self.state_of(task_id)
            if before is None:
                raise UnknownTaskError(f"{task_id} is finished or was never submitted")
            after[task_id] = next_state(before, fact)
        tasks = [(self.open_task(task_id), after[task_id]) for task_id in ids]
        return [(task, state) for task, state in tasks if task is not None]

    _apply: Final[dict[type, Callable[..., None]]] = {
        facts.Submitted: _submitted,
        facts.Due: _due,
        facts.Assigned: _assigned,
        facts.Adopted: _adopted,
        facts.Requeued: _requeued,
        facts.Recounted: _recounted,
        facts.Completed: _completed,
        facts.Failed: _failed,
        facts.Cancelled: _cancelled,
        facts.Enrolled: _enrolled,
        facts.Dismissed: _dismissed,
        facts.Closed: _unchanged,
        facts.Pruned: _pruned,
        facts.ErasureSet: _erasure_set,
        facts.Erased: _erased,
        facts.AssignmentsSettled: _unchanged,
        facts.WorkersMissed: _unchanged,
    }


def _first_of(item: tuple[int, Batch]) -> int:
    return item[0]
