"""Handing tasks out: who waits, until when, and who gets what."""

from __future__ import annotations

import heapq
import math
from collections.abc import Container, Iterable
from itertools import accumulate
from typing import Final

from msgspec import structs

from d8mesh.core.broker import placement as placing
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.queue import Lane
from d8mesh.core.broker.records import Batch, RunningAttempt, TaskRecord
from d8mesh.core.broker.state import ATTEMPT_GRACE_S, PLACED_TIME_S, BrokerState, PassDeadline
from d8mesh.core.broker.store import BatchPayloads, PayloadsOf, StoreAnswer, Unreadable
from d8mesh.core.broker.worker_registry import POLLING, WorkerState
from d8mesh.core.protocol.messages import (
    SOFT_FRAME_BYTES,
    Answer,
    Placed,
    Placement,
    Received,
    Work,
    WorkGroup,
)
from d8mesh.core.protocol.source import is_waited_for
from d8mesh.core.protocol.task import Assigned, Due, TaskState

#: Payloads that cannot be read are asked for so often, with that pause, until their tasks fail.
READ_TRIES: Final = 5
READ_PAUSE_S: Final = 2.0
#: Waiting single tasks looked at for one free worker.
RETRY_SCAN: Final = 64
_MAX_GROUP_TASKS: Final = 1024
_MAX_HEADINGS: Final = 16_384  # of tokens, by worker and attempt: about 4 MB, then made anew


class Scheduler:
    """Assigns waiting tasks to free workers; one `assign` per wake-up of the loop."""

    def __init__(self, state: BrokerState, outcomes: TaskOutcomes) -> None:
        self._state = state
        self._outcomes = outcomes
        self._alarms: list[tuple[float, int, Batch]] = []  # run_at, by the wall clock
        #: worker id -> what it is given in this pass, and the bytes of that
        self._groups: dict[str, tuple[list[WorkGroup], int]] = {}
        #: worker id -> where what it is given in this pass is to run, as far as that is said
        self._placements: dict[str, Placed] = {}
        self._headings: dict[tuple[str, int], bytes] = {}
        #: session and first of a batch whose payloads were asked for -> its type
        self._loading: dict[tuple[str, int], str] = {}
        #: the same -> how often its payloads could not be read, when to try again
        self._unreadable: dict[tuple[str, int], tuple[int, float]] = {}
        self._shares: dict[str, int] = {}

    # ------------------------------------------------------------------------ time

    def run_alarms(self) -> None:
        """Let the batches wait for their turn whose time has come by the wall clock."""
        due = []
        while self._alarms and self._alarms[0][0] <= self._state.at:
            due.append(heapq.heappop(self._alarms)[2])
        for batch in due:
            if batch.unfinished and batch.is_delayed:
                self._batch_due(batch)

    def _batch_due(self, batch: Batch) -> None:
        state = self._state
        singles = [state.task_table.tasks.get(batch.task_id(index)) for index in batch.gone]
        waiting = [task for task in singles if task and task.state is TaskState.DELAYED]
        self._state.record(Due([task.id for task in waiting], [(batch.session, batch.first)]))
        state.queue.put_batch(batch)
        for task in waiting:
            state.queue.put_task(task)

    def next_alarm(self) -> float:
        """Return when `run_alarms` has something to do next (monotonic)."""
        if not self._alarms:
            return math.inf
        return self._state.now + max(0.0, self._alarms[0][0] - self._state.at)

    def pass_deadline(self, session: str, first: int) -> None:
        """Fail the tasks of a batch that are too late."""
        task_table = self._state.task_table
        batch = task_table.batch_at(session, first)
        ids = [] if batch is None else [batch.task_id(index) for index in range(batch.count)]
        late = [task_id for task_id in ids if task_table.state_of(task_id) is not None]
        if late:
            self._outcomes.fail_for(late, code="task.deadline", why="deadline exceeded")

    # ------------------------------------------------------------------ coming in

    def enqueue(self, batch: Batch) -> None:
        """Let the fresh tasks of a new (or restored) batch wait for their turn."""
        spec, state = batch.spec, self._state
        if spec.source and is_waited_for(spec.source):
            state.waited_for.append(batch)
        if spec.deadline_at is not None:  # the only look at the wall clock: it may jump later
            left_s = spec.deadline_at - state.at
            batch.expires = state.now + left_s
            state.after(left_s, PassDeadline(batch.session, batch.first))
        if batch.is_delayed:
            assert spec.run_at is not None
            heapq.heappush(self._alarms, (spec.run_at, batch.order, batch))
        elif batch.fresh_count:
            state.queue.put_batch(batch)

    # ------------------------------------------------------------------ going out

    def assign(self) -> None:
        """Hand out what waits to whoever is free, in the order of the queue."""
        state = self._state
        if not state.task_table.queued or not state.registry.free or state.is_draining:
            return
        self._shares.clear()
        lanes = [
            lane
            for key, lane in state.queue.lanes.items()
            if lane.mask and key.type in state.registry.free
        ]
        while lanes:
            turn = state.queue.choose(lanes)
            if turn is None:
                break
            given = self._give(turn.lane, turn.priority, turn.limit)
            if not given and not turn.is_aged:
                given = self._give_lower(turn.lane, turn.priority)
            if given:
                state.queue.handed_out(given, is_aged=turn.is_aged)
            if not given or not turn.lane.mask or turn.lane.key.type not in state.registry.free:
                lanes.remove(turn.lane)
        state.queue.drop_empty()
        self.flush()

    def flush(self) -> None:
        """Send what was given in this pass."""
        for worker_id in list(self._groups):
            self._flush(self._state.registry.workers[worker_id])

    def hand_placed(
        self, task: TaskRecord, worker: WorkerState, placement: Placement, service: str
    ) -> None:
        """Let a task go to a worker that runs it at a service.

        Args:
            service: the id that this is kept under; the worker may call it something else.
        """
        placed = self._placements.setdefault(worker.worker_id, Placed([], []))
        placed.ids.append(task.id)
        placed.placements.append(placement)
        left_s = max(0.0, task.batch.expires - self._state.now)
        self._hand(task.batch.spec.type, [(worker, [task])], min(PLACED_TIME_S, left_s))
        task.attempt = structs.replace(task.attempt, service=service, model=placement.model)

    def page_in_soon(self, batches: Iterable[Batch]) -> None:
        """Ask for payloads that are not in memory; see `page_in`."""
        self._page_in(batches)

    def is_loading(self, types: Container[str]) -> bool:
        """Return whether payloads of tasks of one of these types are being read."""
        return any(kind in types for kind in self._loading.values())

    def _give_lower(self, lane: Lane, priority: int) -> int:
        """What has its turn cannot go anywhere now: nobody shall idle for it."""
        for lower in range(priority - 1, 0, -1):
            if lane.mask & 1 << lower:
                given = self._give(lane, lower, 1)
                if given:
                    return given
        return 0

    def _give(self, lane: Lane, priority: int, limit: int) -> int:
        state = self._state
        for task in lane.retried(priority, RETRY_SCAN):
            if task.payload is None:
                self._page_in([task.batch])
                continue
            worker = placing.choose_worker(lane.key, state.registry, task)
            if worker is not None:
                lane.take_retried(task)
                self._hand(lane.key.type, [(worker, [task])], self._timeout_s(task.batch))
                return 1
        head = lane.head(priority)
        if head is None:
            return 0
        if head.payloads is None:
            self._page_in(lane.upcoming(priority))
            return 0
        fitting = SOFT_FRAME_BYTES // (head.size_bytes // head.count + 64) or 1
        most = min(self._share(lane.key.type), fitting, _MAX_GROUP_TASKS)
        given, left, timeout_s = 0, min(limit, head.fresh_count), self._timeout_s(head)
        while given < left:  # until then the turn stays with this batch
            workers = placing.choose_workers(lane.key, state.registry, left - given)
            if not workers:
                break
            rooms = [min(worker.free, most) for worker in workers]
            tasks = state.task_table.draw(head, min(left - given, sum(rooms)))
            ends = list(accumulate(rooms))
            shares = [
                (worker, tasks[end - room : end])
                for worker, room, end in zip(workers, rooms, ends, strict=True)
                if end - room < len(tasks)
            ]
            self._hand(lane.key.type, shares, timeout_s)
            given += len(tasks)
            run_at = head.spec.run_at
            since_at = head.at if run_at is None else max(head.at, run_at)
            state.metrics.queue_wait_s.fresh.append((state.at - since_at, len(tasks)))
        if not head.fresh_count:
            lane.head(priority)  # the lane knows at once whether more waits there
        return given

    def _share(self, kind: str) -> int:
        """The even share of a type, fixed for one pass: what is left must not shrink it."""
        if kind not in self._shares:
            waiting = self._state.task_table.queued
            self._shares[kind] = placing.share(waiting, kind, self._state.registry)
        return self._shares[kind]

    def _hand(
        self, kind: str, shares: Iterable[tuple[WorkerState, list[TaskRecord]]], timeout_s: float
    ) -> None:
        """Let tasks of one batch go to workers, each its own."""
        state, sign = self._state, self._state.signer.token
        listeners, until = state.listeners, state.now + timeout_s + ATTEMPT_GRACE_S
        for worker, tasks in shares:  # the path of every task
            number, worker_id = state.next_assignment, worker.worker_id
            ids: list[str] = []
            ns: list[int] = []
            tokens: list[bytes] = []
            payloads: list[bytes] = []
            heading, last_n = b"", 0
            for task in tasks:
                task_id, n = task.id, task.n + 1
                if n != last_n:  # most are at their first attempt
                    heading, last_n = self._heading(worker_id, n), n
                ids.append(task_id)
                ns.append(n)
                tokens.append(sign(heading, task_id))
                payloads.append(task.payload or b"")
            is_polling = worker.dialect is POLLING
            self._state.record(Assigned(number, worker_id, ids, ns, state.at, is_polling))
            state.next_assignment = number + 1
            state.metrics.assigned += len(ids)
            outstanding, work_seq = worker.outstanding, worker.work_seq + 1
            for task, token in zip(tasks, tokens, strict=True):
                task.attempt = RunningAttempt(token, until, state.now, work_seq)
                outstanding[task.id] = task
            if is_polling:
                self._answer_poll(worker, tasks[0])
            else:
                group = WorkGroup(kind, timeout_s, False, ids, tokens, payloads)
                for part in _by_listening(group, listeners) if listeners else (group,):
                    self._put(worker, part)
            state.registry.refresh(worker)
            if worker.is_free:
                state.registry.to_the_end(worker, kind)

    def _put(self, worker: WorkerState, group: WorkGroup) -> None:
        """Add to what a mesh worker is sent in this pass."""
        groups, size = self._groups.get(worker.worker_id, ([], 0))
        groups.append(group)
        size += sum(map(len, group.payloads))
        self._groups[worker.worker_id] = (groups, size)
        if size > SOFT_FRAME_BYTES:
            self._flush(worker)

    def _flush(self, worker: WorkerState) -> None:
        groups, _ = self._groups.pop(worker.worker_id)
        worker.work_seq += 1
        worker.last_assignment = self._state.now
        owed, worker.owed = worker.owed, []
        if owed and self._state.unconfirmed_since < math.inf:  # the assignment shall not wait
            for seq in owed:
                self._state.send(worker.peer, Received(seq), waits=True)
            owed = []
        placed = self._placements.pop(worker.worker_id, None)
        if placed is not None:
            self._state.tell(worker, placed)
        self._state.tell(worker, Work(worker.work_seq, groups, owed))

    def _answer_poll(self, worker: WorkerState, task: TaskRecord) -> None:
        poll, worker.poll = worker.poll, None
        assert poll is not None  # only a waiting poll makes a polling worker free
        body: dict[str, object] = {
            "task_id": task.id,
            "type": task.batch.spec.type,
            "data": task.payload,
            "priority": task.batch.spec.priority,
            "attempt": task.n,
        }
        self._state.send(poll.peer, Answer(poll.request, "", {"task": body}))

    def _heading(self, worker_id: str, n: int) -> bytes:
        heading = self._headings.get((worker_id, n))
        if heading is None:
            if len(self._headings) > _MAX_HEADINGS:
                self._headings.clear()
            heading = self._headings[worker_id, n] = self._state.signer.heading(worker_id, n)
        return heading

    def _timeout_s(self, batch: Batch) -> float:
        return min(self._state.policy.task_timeout_s, max(0.0, batch.expires - self._state.now))

    def _page_in(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            place = (batch.session, batch.first)
            tries, not_before = self._unreadable.get(place, (0, 0.0))
            is_paused = tries and self._state.now < not_before
            if batch.payloads is None and place not in self._loading and not is_paused:
                self._loading[place] = batch.spec.type
                question = PayloadsOf(*place)
                self._state.ask(question, question)

    def page_in(self, asked: PayloadsOf, answer: StoreAnswer) -> None:
        """Take payloads into memory that were asked for."""
        place = (asked.session, asked.first)
        batch = self._state.task_table.batch_at(*place)
        self._loading.pop(place, None)
        payloads = answer.payloads if isinstance(answer, BatchPayloads) else []
        if batch is not None and len(payloads) != batch.count:
            found = f"{len(payloads)} of {batch.count} are there"
            self._unread(batch, answer.why if isinstance(answer, Unreadable) else found)
            return
        self._unreadable.pop(place, None)
        if batch is not None:
            self._state.task_table.load(batch, payloads)
            self._state.services.is_stirred = True

    def _unread(self, batch: Batch, error: str) -> None:
        """Try again after a pause; in the end its tasks fail, lest they block those behind."""
        state, place = self._state, (batch.session, batch.first)
        tries = self._unreadable.get(place, (0, 0.0))[0] + 1
        self._unreadable[place] = (tries, state.now + READ_PAUSE_S)
        if tries < READ_TRIES:
            return
        ids = (batch.task_id(index) for index in range(batch.count))
        waiting = (TaskState.QUEUED, TaskState.DELAYED)
        self._outcomes.fail_for(
            [task_id for task_id in ids if state.task_table.state_of(task_id) in waiting],
            code="task.unreadable",
            why=f"its data cannot be read from the journal: {error}",
        )
        del self._unreadable[place]


def _by_listening(group: WorkGroup, listeners: Container[str]) -> Iterable[WorkGroup]:
    """Part a group: to be told with the assignment is the only way to miss nothing."""
    flags = [task_id in listeners for task_id in group.ids]
    if not any(flags):
        return (group,)
    parts = []
    for is_listened in (False, True):
        rows = [index for index, flag in enumerate(flags) if flag is is_listened]
        ids, tokens = [group.ids[i] for i in rows], [group.tokens[i] for i in rows]
        payloads = [group.payloads[i] for i in rows]
        if rows:
            part = WorkGroup(group.type, group.timeout_s, is_listened, ids, tokens, payloads)
            parts.append(part)
    return parts
