"""Handing tasks out, taking them back, and everything in between that runs by the clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable
from functools import partial
from itertools import accumulate
from typing import Final

from d8mesh.core.broker import placement
from d8mesh.core.broker.outcomes import Failure, TaskOutcomes
from d8mesh.core.broker.queue import Lane, LaneKey
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.worker_registry import POLLING, WorkerState
from d8mesh.core.protocol.messages import SOFT_FRAME_BYTES, Answer, Work, WorkGroup
from d8mesh.core.protocol.task import AT_ONCE, Assigned, Due, Recounted, Requeued, TaskState, Wait

#: A retry waits a random part of this, doubled for each error before, up to the cap.
RETRY_PAUSE_S: Final = 0.5
MAX_RETRY_PAUSE_S: Final = 30.0
#: The longest pause that a failed attempt may wish for before the next: a day.
MAX_WISHED_PAUSE_S: Final = 86_400.0
#: Payloads that cannot be read are asked for so often, with that pause, until their tasks fail.
READ_TRIES: Final = 5
READ_PAUSE_S: Final = 2.0
#: A task that took this many different workers down is poison.
POISON_LOSSES: Final = 3
#: Waiting single tasks looked at for one free worker.
RETRY_SCAN: Final = 64
#: Beyond its own timeout an attempt is left to its worker this much longer.
ATTEMPT_GRACE_S: Final = 30.0
_MAX_GROUP_TASKS: Final = 1024
_MAX_HEADINGS: Final = 16_384  # of tokens, by worker and attempt: about 4 MB, then made anew


class Scheduler:
    """Assigns waiting tasks to free workers; one `assign` per wake-up of the loop."""

    def __init__(self, broker: BrokerState, task_outcomes: TaskOutcomes) -> None:
        self._state = broker
        self._outcomes = task_outcomes
        self._timers: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._timer_count = 0
        self._alarms: list[tuple[float, int, Batch]] = []  # run_at, by the wall clock
        #: worker id -> what it is given in this pass, and the bytes of that
        self._groups: dict[str, tuple[list[WorkGroup], int]] = {}
        self._headings: dict[tuple[str, int], bytes] = {}
        #: order of a batch whose payloads were asked for -> its type
        self._loading: dict[int, str] = {}
        #: order of a batch -> how often its payloads could not be read, when to try again
        self._unreadable: dict[int, tuple[int, float]] = {}
        self._shares: dict[str, int] = {}

    @property
    def full_time_s(self) -> float:
        """How far ahead a fresh attempt without a deadline is overdue."""
        return self._state.policy.task_timeout_s + ATTEMPT_GRACE_S

    # ------------------------------------------------------------------------ time

    def after(self, pause_s: float, action: Callable[..., None], *args: object) -> None:
        """Call ``action(*args)`` in a later tick, `pause_s` from now."""
        self._timer_count += 1
        heapq.heappush(self._timers, (self._state.now + pause_s, self._timer_count, action, args))

    def run_timers(self) -> None:
        """Do what is due."""
        broker = self._state
        while self._timers and self._timers[0][0] <= broker.now:
            _, _, action, args = heapq.heappop(self._timers)
            action(*args)
        due = []
        while self._alarms and self._alarms[0][0] <= broker.at:
            due.append(heapq.heappop(self._alarms)[2])
        for batch in due:
            if batch.unfinished and batch.is_delayed:
                self._batch_due(batch)

    def _batch_due(self, batch: Batch) -> None:
        broker = self._state
        singles = [broker.task_table.tasks.get(batch.task_id(index)) for index in batch.gone]
        waiting = [task for task in singles if task and task.state is TaskState.DELAYED]
        broker.record(Due([task.id for task in waiting], [(batch.session, batch.first)]))
        broker.queue.put_batch(batch)
        for task in waiting:
            broker.queue.put_task(task)

    def next_deadline(self) -> float | None:
        """Return when `run_timers` has something to do next (monotonic)."""
        broker = self._state
        dues = [self._timers[0][0]] if self._timers else []
        if self._alarms:
            dues.append(broker.now + max(0.0, self._alarms[0][0] - broker.at))
        return min(dues, default=None)

    # ------------------------------------------------------------------ coming in

    def enqueue(self, batch: Batch) -> None:
        """Let the fresh tasks of a new (or restored) batch wait for their turn."""
        spec, broker = batch.spec, self._state
        if spec.deadline_at is not None:  # the only look at the wall clock: it may jump later
            left_s = spec.deadline_at - broker.at
            batch.expires = broker.now + left_s
            self.after(left_s, self._deadline_passed, batch)
        if batch.is_delayed:
            assert spec.run_at is not None
            heapq.heappush(self._alarms, (spec.run_at, batch.order, batch))
        elif batch.fresh_count:
            broker.queue.put_batch(batch)

    def requeue(
        self,
        worker_id: str,
        tasks: Iterable[TaskRecord],
        why: str,
        *,
        is_counted: bool = False,
        is_loss: bool = False,
        wait: Wait = AT_ONCE,
    ) -> None:
        """Take attempts back from a worker; counted ones use up the tasks' attempts.

        Tasks whose attempts are used up fail instead, with `why` as their error. The others wait
        as `wait` says.
        """
        broker = self._state
        again: list[TaskRecord] = []
        for task in tasks:
            self._take_back(task)
            if is_counted and self._is_used_up(task, worker_id, is_loss):
                self._fail_used_up(task, worker_id, why, is_loss)
            else:
                again.append(task)
        if not again:
            return
        ids, ns = [t.id for t in again], [t.n for t in again]
        broker.record(
            Requeued(
                worker_id,
                ids,
                ns,
                why,
                broker.at,
                is_counted=is_counted,
                is_loss=is_loss,
                not_before_at=broker.at + wait.pause_s if wait.pause_s else 0.0,
                returned=wait.returned,
            )
        )
        for task in again:
            if wait.pause_s:
                self.after(wait.pause_s, self._retry, task)
            else:
                broker.queue.put_task(task)

    def resume(self, task: TaskRecord) -> None:
        """Let a task of before our start wait: for its turn, or for its time first."""
        history = task.history
        left_s = 0.0 if history is None else history.not_before_at - self._state.at
        if history is not None and left_s > 0 and task.state is TaskState.QUEUED:
            task.state = TaskState.DELAYED
            self.after(min(left_s, history.pause_s), self._retry, task)  # clocks are set back
        else:
            self._state.queue.put_task(task)

    def blame(self, worker_id: str, attempts: dict[str, int], why: str) -> None:
        """Count what was taken back uncounted: it was lost with its worker after all.

        A task whose attempts are used up by that fails, unless another worker has it already.
        """
        ids: list[str] = []
        for task_id in attempts:
            task = self._state.task_table.tasks.get(task_id)
            if task is None:
                continue
            is_running = task.state is TaskState.RUNNING
            if not is_running and self._is_used_up(task, worker_id, is_loss=True):
                self._fail_used_up(task, worker_id, why, is_loss=True)
            else:
                ids.append(task_id)
        if ids:
            ns = [attempts[task_id] for task_id in ids]
            self._state.record(Recounted(worker_id, ids, ns, is_loss=True))

    def attempt_failed(
        self, worker_state_id: str, task: TaskRecord, n: int, payload: bytes, *, is_final: bool
    ) -> None:
        """Attempt `n` ended in an error: queue the task again after a pause, or fail it.

        The pause is what the result wishes for (``retry_after_s``), else a growing one.
        """
        broker = self._state
        told = Failure.of(payload)
        why = told.text
        self._take_back(task)
        is_final = is_final or told.is_final
        key = LaneKey(task.batch.spec.type, task.batch.spec.model)
        if is_final and placement.is_offered_elsewhere(worker_state_id, key, broker.registry):
            is_final = False  # it refused a strict wish for a model that another worker has
        if is_final or self._is_used_up(task, worker_state_id, is_loss=False):
            self._outcomes.fail(worker_state_id, [task.id], [told.recorded(payload)], why=why)
            return
        errors = 0 if task.history is None else task.history.errors
        if told.pause_s is None:
            pause_s = min(MAX_RETRY_PAUSE_S, RETRY_PAUSE_S * 2**errors) * broker.draw()
        else:
            pause_s = min(told.pause_s, MAX_WISHED_PAUSE_S)
        broker.record(
            Requeued(
                worker_state_id,
                [task.id],
                [n],  # of one that was taken over a later one may have been handed out
                why,
                broker.at,
                is_counted=True,
                not_before_at=broker.at + pause_s,
                traceback=told.traceback_text,
            )
        )
        self.after(pause_s, self._retry, task)

    def _take_back(self, task: TaskRecord) -> None:
        worker_state = self._state.registry.worker_states.get(task.worker_id)
        if worker_state is not None:
            worker_state.outstanding.pop(task.id, None)
            self._state.registry.refresh(worker_state)

    def _is_used_up(self, task: TaskRecord, worker_id: str, is_loss: bool) -> bool:
        history = task.history
        errors = 0 if history is None else history.errors
        if errors + 1 >= task.batch.spec.max_attempts:
            return True
        return is_loss and _takes_down(task, worker_id) >= POISON_LOSSES

    def _fail_used_up(self, task: TaskRecord, worker_id: str, why: str, is_loss: bool) -> None:
        is_poison = is_loss and _takes_down(task, worker_id) >= POISON_LOSSES
        code = "task.poison" if is_poison else "task.attempts"
        self._outcomes.fail_for([task.id], code=code, why=why, worker_id=worker_id)

    def _retry(self, task: TaskRecord) -> None:
        if self._state.task_table.tasks.get(task.id) is task and task.state is TaskState.DELAYED:
            self._state.record(Due([task.id], []))
            self._state.queue.put_task(task)

    def _deadline_passed(self, batch: Batch) -> None:
        task_table = self._state.task_table
        ids = [batch.task_id(index) for index in range(batch.count)]
        late = [task_id for task_id in ids if task_table.state_of(task_id) is not None]
        if late:
            self._outcomes.fail_for(late, code="task.deadline", why="deadline exceeded")

    # ------------------------------------------------------------------ going out

    def assign(self) -> None:
        """Hand out what waits to whoever is free, in the order of the queue."""
        broker = self._state
        if not broker.task_table.queued or not broker.registry.free or broker.is_draining:
            return
        self._shares.clear()
        lanes = [
            lane
            for key, lane in broker.queue.lanes.items()
            if lane.mask and key.type in broker.registry.free
        ]
        while lanes:
            turn = broker.queue.choose(lanes)
            if turn is None:
                break
            given = self._give(turn.lane, turn.priority, turn.limit)
            if not given and not turn.is_aged:
                given = self._give_lower(turn.lane, turn.priority)
            if given:
                broker.queue.handed_out(given, is_aged=turn.is_aged)
            if not given or not turn.lane.mask or turn.lane.key.type not in broker.registry.free:
                lanes.remove(turn.lane)
        broker.queue.drop_empty()
        for worker_id in list(self._groups):
            self._flush(broker.registry.worker_states[worker_id])

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
        broker = self._state
        for task in lane.retried(priority, RETRY_SCAN):
            if task.payload is None:
                self._page_in([task.batch])
                continue
            worker_state = placement.choose_worker(lane.key, broker.registry, task)
            if worker_state is not None:
                lane.take_retried(task)
                self._hand(lane, [(worker_state, [task])], self._timeout_s(task.batch))
                return 1
        head = lane.head(priority)
        if head is None:
            return 0
        if head.payloads is None:
            self._page_in(lane.upcoming(priority))
            return 0
        fitting = SOFT_FRAME_BYTES // (head.size_bytes // head.count + 64) or 1
        most = min(self._share(lane.key.type), fitting, _MAX_GROUP_TASKS)
        given, timeout_s = 0, self._timeout_s(head)
        while given < limit and head.fresh_count:  # until then the turn stays with this batch
            most_worker_states = min(limit - given, head.fresh_count)  # the line may be long
            worker_states = placement.choose_workers(lane.key, broker.registry, most_worker_states)
            if not worker_states:
                break
            rooms = [min(worker_state.free, most) for worker_state in worker_states]
            tasks = broker.task_table.draw(head, min(limit - given, sum(rooms)))
            ends = list(accumulate(rooms))
            shares = [
                (worker_state, tasks[end - room : end])
                for worker_state, room, end in zip(worker_states, rooms, ends, strict=True)
                if end - room < len(tasks)
            ]
            self._hand(lane, shares, timeout_s)
            given += len(tasks)
        if not head.fresh_count:
            lane.head(priority)  # the lane knows at once whether more waits there
        return given

    def _share(self, kind: str) -> int:
        """The even share of a type, fixed for one pass: what is left must not shrink it."""
        if kind not in self._shares:
            waiting = self._state.task_table.queued
            self._shares[kind] = placement.share(waiting, kind, self._state.registry)
        return self._shares[kind]

    def _hand(
        self, lane: Lane, shares: Iterable[tuple[WorkerState, list[TaskRecord]]], timeout_s: float
    ) -> None:
        """Let tasks of one batch go to workers, each its own."""
        broker, registry, record = self._state, self._state.registry, self._state.record
        token, heading, listeners = broker.signer.token, self._heading, broker.listeners
        until, kind = broker.now + timeout_s + ATTEMPT_GRACE_S, lane.key.type
        for worker_state, tasks in shares:  # the path of every task
            number, broker.next_assignment = broker.next_assignment, broker.next_assignment + 1
            worker_id, outstanding, work_seq = (
                worker_state.worker_id,
                worker_state.outstanding,
                worker_state.work_seq + 1,
            )
            ids: list[str] = []
            ns: list[int] = []
            tokens: list[bytes] = []
            payloads: list[bytes] = []
            size = 0
            for task in tasks:
                task_id, n, payload = task.id, task.n + 1, task.payload or b""
                task.token = token(heading(worker_id, n), task_id)
                task.work_seq = work_seq
                task.until = until
                ids.append(task_id)
                ns.append(n)
                tokens.append(task.token)
                payloads.append(payload)
                size += len(payload)
                outstanding[task_id] = task
            is_polling = worker_state.dialect is POLLING
            record(Assigned(number, worker_id, ids, ns, broker.at, is_polling))
            if is_polling:
                self._answer_poll(worker_state, tasks[0])
            else:
                group = WorkGroup(kind, timeout_s, False, ids, tokens, payloads)
                for part in _by_listening(group, listeners) if listeners else (group,):
                    self._put(
                        worker_state, part, size if part is group else sum(map(len, part.payloads))
                    )
            registry.refresh(worker_state)
            if worker_state.is_free:
                registry.to_the_end(worker_state, kind)

    def _put(self, worker_state: WorkerState, group: WorkGroup, size: int) -> None:
        """Add to what a mesh worker is sent in this pass."""
        before = self._groups.get(worker_state.worker_id)
        if before is not None:
            before[0].append(group)
            size += before[1]
        self._groups[worker_state.worker_id] = ([group] if before is None else before[0], size)
        if size > SOFT_FRAME_BYTES:
            self._flush(worker_state)

    def _flush(self, worker_state: WorkerState) -> None:
        groups, _ = self._groups.pop(worker_state.worker_id)
        worker_state.work_seq += 1
        worker_state.last_assignment = self._state.now
        owed, worker_state.owed = worker_state.owed, []
        self._state.tell(worker_state, Work(worker_state.work_seq, groups, owed))

    def _answer_poll(self, worker_state: WorkerState, task: TaskRecord) -> None:
        poll, worker_state.poll = worker_state.poll, None
        assert poll is not None  # only a waiting poll makes a polling worker free
        broker = self._state
        task.remember().holders.add(worker_state.worker_id)
        body: dict[str, object] = {
            "task_id": task.id,
            "type": task.batch.spec.type,
            "data": task.payload,
            "priority": task.batch.spec.priority,
            "attempt": task.n,
        }
        broker.send(poll.peer, Answer(poll.request, "", {"task": body}))

    def _heading(self, worker_id: str, n: int) -> bytes:
        heading = self._headings.get((worker_id, n))
        if heading is None:
            if len(self._headings) > _MAX_HEADINGS:
                self._headings.clear()
            heading = self._headings[worker_id, n] = self._state.signer.heading(worker_id, n)
        return heading

    def _timeout_s(self, batch: Batch) -> float:
        return min(self._state.policy.task_timeout_s, max(0.0, batch.expires - self._state.now))

    def take_overdue(self, worker_state: WorkerState) -> None:
        """Take back what a mesh worker kept far beyond its time without a word about it.

        Hand-outs are looked at in their order, so a later one with a shorter time may wait
        for those before it; its worker has a timer of its own anyway.
        """
        overdue: list[TaskRecord] = []
        for task in worker_state.outstanding.values():
            if task.until > self._state.now:
                break
            overdue.append(task)
        if overdue:
            self.requeue(worker_state.worker_id, overdue, "timed out", is_counted=True)

    def _page_in(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if batch.payloads is None and batch.order not in self._loading:
                tries, not_before = self._unreadable.get(batch.order, (0, 0.0))
                if tries and self._state.now < not_before:
                    continue
                self._loading[batch.order] = batch.spec.type
                self._state.load(
                    "payloads", (batch.session, batch.first), partial(self._paged_in, batch)
                )

    def _paged_in(self, batch: Batch, rows: list[tuple[object, ...]], error: str) -> None:
        self._loading.pop(batch.order, None)
        payloads = rows[0][0] if rows else None
        found = len(payloads) if isinstance(payloads, list) else 0
        if not batch.unfinished:
            self._unreadable.pop(batch.order, None)
        elif error or not isinstance(payloads, list) or found != batch.count:
            self._unread(batch, error or f"{found} of {batch.count} are there")
        else:
            self._unreadable.pop(batch.order, None)
            self._state.task_table.load(batch, payloads)

    def _unread(self, batch: Batch, error: str) -> None:
        """Try again after a pause; in the end its tasks fail, lest they block those behind."""
        broker = self._state
        tries = self._unreadable.get(batch.order, (0, 0.0))[0] + 1
        self._unreadable[batch.order] = (tries, broker.now + READ_PAUSE_S)
        if tries < READ_TRIES:
            return
        del self._unreadable[batch.order]
        ids = (batch.task_id(index) for index in range(batch.count))
        waiting = (TaskState.QUEUED, TaskState.DELAYED)
        self._outcomes.fail_for(
            [task_id for task_id in ids if broker.task_table.state_of(task_id) in waiting],
            code="task.unreadable",
            why=f"its data cannot be read from the journal: {error}",
        )


def _by_listening(group: WorkGroup, listeners: Container[str]) -> Iterable[WorkGroup]:
    """Part a group: to be told with the hand-out is the only way to miss nothing."""
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


def _takes_down(task: TaskRecord, worker_id: str) -> int:
    """Return how many workers a task has taken down, this one being the last."""
    losses = () if task.history is None else task.history.losses
    return len({worker_id, *(name for name, _ in losses)})
