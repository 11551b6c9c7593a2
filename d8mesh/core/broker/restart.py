"""What a start goes on from, and the workers that it waits for.

What was in flight at the end of the last run is held for the worker that had it, until that is
back or has been waited for enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from d8mesh.core.broker.polling import Polling
from d8mesh.core.broker.records import RunningAttempt
from d8mesh.core.broker.returns import Returns
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.store import Restored
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.task import Adopted, WorkersMissed

#: How often the wait for workers that are not back is noted, in leases.
WAIT_STEP_LEASES: Final = 0.25
#: The least that a worker gets to come back after a start, however long it was waited for
#: before: one that lives notices a new address after 4.5 s, and connects.
MIN_GRACE_S: Final = 6.0


class Restart:
    """Restores the state, and waits for the workers of before.

    Args:
        restored: what the store holds.
    """

    def __init__(
        self,
        state: BrokerState,
        restored: Restored,
        scheduler: Scheduler,
        returns: Returns,
        polling: Polling,
    ) -> None:
        self._state = state
        self._scheduler = scheduler
        self._returns = returns
        self._polling = polling
        #: worker id -> what it had at our start, until it is back or has been waited for enough
        self._orphans: dict[str, list[str]] = {}
        self._waited = restored.waited
        #: the workers that the store says are waited for
        self._noted = set(restored.waited)
        self._waiting_since = state.now
        self._next_note = state.now + WAIT_STEP_LEASES * state.policy.lease_s
        self._restore(restored)
        #: False when some of those are back that the store says are waited for
        self.is_noted = self._noted <= self._orphans.keys()

    def forgive(self, gap_s: float) -> None:
        """The broker stood still for so long: that does not count as waiting."""
        self._waiting_since += gap_s

    def settle(self, worker_id: str) -> None:
        """A worker is back after our start: its HELLO names all it holds, the rest waits again.

        Without this a broker that dies more often than a lease would never hand them out.
        """
        ids = self._orphans.get(worker_id)
        if ids is not None:
            self._give_up(worker_id, ids, "its worker holds it no more")

    def give_up(self, last_tick: float) -> None:
        """What no worker came back with for one lease waits again, uncounted.

        How long a worker was waited for is noted, as the next start goes on with that: else a
        broker that dies more often than a lease would wait for ever for one that is dead.

        Args:
            last_tick: when the broker last ran (a tick after a standstill comes only behind the
                messages).
        """
        waited_s, state = last_tick - self._waiting_since, self._state
        for worker_id, ids in list(self._orphans.items()):
            grace_s = max(MIN_GRACE_S, state.policy.lease_s - self._waited.get(worker_id, 0.0))
            if waited_s >= grace_s:
                self._give_up(worker_id, ids, "its worker did not come back")
        if self._orphans and state.now >= self._next_note:
            self.note(last_tick)

    def note(self, last_tick: float) -> None:
        """Note who is waited for, not who is back: their next grace is whole."""
        waited_s = last_tick - self._waiting_since
        waited = {each: self._waited.get(each, 0.0) + waited_s for each in self._orphans}
        self._state.record(WorkersMissed(list(waited), list(waited.values())))
        self._noted, self.is_noted = set(waited), True
        self._next_note = self._state.now + WAIT_STEP_LEASES * self._state.policy.lease_s

    def _give_up(self, worker_id: str, ids: Sequence[str], why: str) -> None:
        worker = self._state.registry.workers.get(worker_id)
        tasks = [self._state.task_table.tasks.get(task_id) for task_id in ids]
        lost = [
            task
            for task in tasks
            if task is not None
            and task.worker_id == worker_id
            and (worker is None or task.id not in worker.outstanding)
        ]
        self._returns.requeue(worker_id, lost, why)
        del self._orphans[worker_id]
        self.is_noted = self._noted <= self._orphans.keys()

    # ----------------------------------------------------------------------- the store's

    def _restore(self, restored: Restored) -> None:
        state, task_table = self._state, self._state.task_table
        state.next_assignment = restored.next_assignment
        task_table.totals = self._state.metrics.totals = restored.totals
        task_table.workers = restored.workers
        task_table.kept_finished = restored.kept_finished
        task_table.take_keys(restored.keys)
        task_table.max_sessions = restored.max_sessions
        task_table.forgotten_sessions = max(0, restored.sessions - len(restored.accepted))
        for session, ranges in restored.accepted.items():
            for first, count in ranges:
                task_table.accept(session, first, count)
        unfinished = []
        for batch, finished in restored.batches:
            if len(finished) < batch.count:
                task_table.restore(batch, finished)
                unfinished.append(batch)
            else:
                state.closed.append((batch.session, batch.first))
        self._polling.restore()
        self._restore_singles(restored)
        for batch in unfinished:
            self._scheduler.enqueue(batch)

    def _restore_singles(self, restored: Restored) -> None:
        """Make objects of the tasks that are more than a number in their batch."""
        task_table, waiting = self._state.task_table, []
        for task_id, (n, history) in restored.troubled.items():
            is_waiting = task_id not in restored.in_flight
            at = self._state.at if is_waiting else None
            task = task_table.restore_task(task_id, n, history, at)
            if task is not None and is_waiting:
                waiting.append(task)
        for task_id, (n, worker_id) in restored.in_flight.items():
            if task_table.state_of(task_id) is None:
                continue
            worker = self._state.registry.workers.get(worker_id)
            is_polling = worker is not None and worker.dialect is Dialect.POLLING
            task_table.apply(Adopted(worker_id, [task_id], [n], is_polling))
            if worker is not None and is_polling:
                self._hold(worker, task_id)
            else:
                self._orphans.setdefault(worker_id, []).append(task_id)
        for task in waiting:
            self._returns.resume(task)

    def _hold(self, worker: WorkerState, task_id: str) -> None:
        """A polling worker is silent while it runs: its attempts get their whole time again."""
        task, now = self._state.task_table.tasks[task_id], self._state.now
        task.attempt = RunningAttempt(until=now + self._state.policy.task_timeout_s)
        worker.outstanding[task_id] = task
        worker.last_heard = now
