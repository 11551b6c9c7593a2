"""Attempts that end without an outcome: their tasks wait again, or have failed.

Errors, and losses of the worker, use up a task's attempts. What is given back, or lost between
broker and worker, costs none, else an orderly shutdown would use them up. But what comes back
again and again would go round for ever, unseen: so the pause before the next try grows, the
reason is kept for who asks, and beyond a bound it is an error like any other.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Final, NamedTuple

from d8mesh.core.broker import candidates, placement
from d8mesh.core.broker.outcomes import MAX_REASON_CHARS, Failure, TaskOutcomes, failure_payload
from d8mesh.core.broker.patience import Patience
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import History, TaskRecord
from d8mesh.core.broker.state import BrokerState, Retry
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.source import is_waited_for
from d8mesh.core.protocol.task import (
    AT_ONCE,
    EXCUSED,
    ORDERLY,
    SUSPECT,
    Due,
    Recounted,
    Requeued,
    TaskState,
    Wait,
)

#: A retry waits a random part of this, doubled for each error before, up to the cap.
RETRY_PAUSE_S: Final = 0.5
MAX_RETRY_PAUSE_S: Final = 30.0
#: The longest pause that a failed attempt may wish for before the next: a day.
MAX_WISHED_PAUSE_S: Final = 86_400.0
#: A task that took this many different workers down is poison.
POISON_LOSSES: Final = 3
#: The pause before the next try, doubled for each time before, up to the cap; between a half
#: and the whole of it is waited.
RETURN_PAUSE_S: Final = 1.0
MAX_RETURN_PAUSE_S: Final = 30.0
#: So many times a task that should have run comes back; the last is counted as a failed attempt.
#: With the pauses that is three to four minutes of a service that does not answer.
MAX_RETURNS: Final = 10
#: So many times a task may come back from workers that have room and did not start it.
MAX_UNSTARTED: Final = 100
#: The same from workers that leave: drains cost nothing, but one that is started again and again
#: and leaves each time would have a task go round for ever. With the pauses that is a working day.
MAX_LEFT: Final = 1000
#: What may happen to a task by chance, a message lost or two, needs no pause.
FREE_RETURNS: Final = 3


class ReturnKind(NamedTuple):
    """What a way of coming back costs: how it is counted, how often without a pause, at most."""

    returned: int
    free: int
    most: float
    cap_s: float = math.inf


#: The worker could not run it: its service is busy or down.
SERVICE_DOWN: Final = ReturnKind(SUSPECT, 0, MAX_RETURNS)
#: Its service is well, and can take no more now: its account allows none, or others fill it. That
#: is nobody's fault, however often; who asks is told why it came back.
NO_CREDIT: Final = ReturnKind(EXCUSED, 0, math.inf, RETURN_PAUSE_S)
#: The worker has it not, and has not said what became of it.
MISLAID: Final = ReturnKind(SUSPECT, FREE_RETURNS, MAX_RETURNS)
#: The worker did not start it and has room: it was given more than it can take now.
UNSTARTED: Final = ReturnKind(ORDERLY, FREE_RETURNS, MAX_UNSTARTED)
#: The worker leaves, or takes nothing for a while.
LEAVING: Final = ReturnKind(ORDERLY, FREE_RETURNS, MAX_LEFT)


class Returns:
    """Takes attempts back from workers."""

    def __init__(self, state: BrokerState, outcomes: TaskOutcomes, patience: Patience) -> None:
        self._state = state
        self._outcomes = outcomes
        self._patience = patience

    # ------------------------------------------------------------------ at no cost

    def take(self, worker_id: str, tasks: Iterable[TaskRecord], why: str, kind: ReturnKind) -> None:
        """Let tasks wait again, each for as long as is due; what came back too often has failed.

        Args:
            worker_id: who had them.
            why: for the task's history and for who asks how it stands.
        """
        why = why[:MAX_REASON_CHARS]
        by_wait: dict[tuple[float, int], list[TaskRecord]] = {}
        for task in tasks:
            cost, history = kind, task.history or History()
            service = task.attempt.service if kind is SERVICE_DOWN else ""
            is_new = service not in task.failed_at
            if service:
                cost = self._land_unrun(task)
            before = history.suspect_returns if cost.returned == SUSPECT else history.returns
            if before + 1 >= cost.most:
                told = f"given back {before + 1} times, the last time: {why}"[:MAX_REASON_CHARS]
                wait = Wait(MAX_RETURN_PAUSE_S * self._part())
                self.requeue(worker_id, [task], told, is_counted=True, wait=wait)
                continue
            doublings = history.returns - cost.free
            doubled_s = RETURN_PAUSE_S * 2.0 ** min(doublings, 10)
            ceiling = min(cost.cap_s, MAX_RETURN_PAUSE_S, doubled_s)
            is_moving = is_new and (service in task.failed_at or not history.excused_returns)
            if doublings < 0 or (service and is_moving):  # another service may take it at once
                ceiling = 0.0
            by_wait.setdefault((ceiling, cost.returned), []).append(task)
        for (ceiling, returned), again in by_wait.items():
            pause_s = ceiling * self._part() if ceiling else 0.0
            self.requeue(worker_id, again, why, wait=Wait(pause_s, returned))
            if kind is SERVICE_DOWN and returned == SUSPECT:
                payload = failure_payload(why, "backend.unavailable", worker_id)
                for task in again:
                    self._patience.failed(task, payload)

    def _land_unrun(self, task: TaskRecord) -> ReturnKind:
        """A service could not run a task: note it there, and return what that costs the task.

        Its worker has said before whether the model is paused there, or its account used up.
        """
        services, service = self._state.services, task.attempt.service
        model = services.model(service, task.attempt.model)
        budget = None if model is None else model.budget
        if budget is not None and budget.free_in_s(0, self._state.now) > 0.0:
            return NO_CREDIT
        if model is not None and model.info.slots < model.in_flight:  # it has said that it is full
            return NO_CREDIT
        # as far as anybody knows: it may fail at once, and its worker not see it
        self._land([task], is_success=False)
        return SERVICE_DOWN if model is None or model.is_paused_told else NO_CREDIT

    def mislaid(self, worker: WorkerState, lost: list[TaskRecord]) -> None:
        """The worker should hold these and does not: the assignment got lost, or they did there."""
        if lost:
            why = f"worker {worker.worker_id!r} did not get or keep it"
            self.take(worker.worker_id, lost, why, MISLAID)

    # ------------------------------------------------------------ errors and losses

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
        state = self._state
        again: list[TaskRecord] = []
        tasks = list(tasks)
        self._land(tasks, is_success=False if is_counted and not is_loss else None)
        for task in tasks:
            if is_counted and self._is_used_up(task, worker_id, is_loss):
                self._fail_used_up(task, worker_id, why, is_loss)
            else:
                again.append(task)
        ids = [task.id for task in again]
        state.metrics.losses += len(ids) * is_loss
        state.metrics.returned += len(ids) * (not is_counted)
        if ids:
            self._state.record(
                Requeued(
                    worker_id,
                    ids,
                    [task.n for task in again],
                    why,
                    state.at,
                    is_counted=is_counted,
                    is_loss=is_loss,
                    not_before_at=state.at + wait.pause_s if wait.pause_s else 0.0,
                    returned=wait.returned,
                    is_cut=wait.is_cut,
                )
            )
        for task in again:
            if not wait.is_cut:  # else it may go on where it is
                self._outcomes.broken_off(task)
            if wait.pause_s:
                state.after(wait.pause_s, Retry(task.id))
            else:
                state.queue.put_task(task)
        self._take_back(worker_id, ids)

    def resume(self, task: TaskRecord) -> None:
        """Let a task of before our start wait: for its turn, or for its time first."""
        is_late = task.state is TaskState.DELAYED and not task.batch.is_delayed
        if is_late and task.history is not None:
            left_s = task.history.not_before_at - self._state.at
            pause_s = min(left_s, task.history.pause_s)  # clocks are set back
            self._state.after(pause_s, Retry(task.id))
        else:
            self._state.queue.put_task(task)

    def retry(self, task_id: str) -> None:
        """The pause of a task is over, if it still waits."""
        task = self._state.task_table.tasks.get(task_id)
        if task is not None and task.state is TaskState.DELAYED:
            self._state.record(Due([task_id], []))
            self._state.queue.put_task(task)

    def lose(
        self,
        worker: WorkerState,
        why: str,
        *,
        is_counted: bool = False,
        is_cut: bool = False,
        kept: Container[str] = (),
    ) -> None:
        """Take all from a worker and mark it offline.

        A loss counts only for the attempts that can have been running: the oldest, one
        per slot. Those behind them were waiting and are not to blame.

        Args:
            is_cut: nobody was heard: it is not counted yet.
            kept: tasks that are not lost.
        """
        held = [task for task in worker.outstanding.values() if task.id not in kept]
        blamed, rest = running_and_waiting(worker, held)
        wait = AT_ONCE._replace(is_cut=is_cut)
        self.requeue(
            worker.worker_id, blamed, why, is_counted=is_counted, is_loss=is_counted, wait=wait
        )
        self.requeue(worker.worker_id, rest, why)
        self._state.part_with(worker)

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
        self, worker_id: str, task: TaskRecord, n: int, payload: bytes, *, is_final: bool
    ) -> None:
        """Attempt `n` ended in an error: queue the task again after a pause, or fail it.

        The pause is what the result wishes for (``retry_after_s``), else a growing one.
        """
        state = self._state
        told = Failure.of(payload)
        why, holder = told.text, task.worker_id
        state.metrics.errors += 1
        is_final = is_final or told.is_final
        key = LaneKey.of(task.batch.spec)
        if is_final and placement.is_offered_elsewhere(worker_id, key, state.registry):
            is_final = False  # it refused a strict wish for a model that another worker has
        self._land([task], is_success=None if is_final else False)
        if is_final or self._is_used_up(task, worker_id, is_loss=False):
            self._outcomes.fail(worker_id, [task.id], [told.recorded(payload)], why=why)
            self._take_back(holder, [])
            return
        pause_s = self._pause_after(task, told)
        self._state.record(
            Requeued(
                worker_id,
                [task.id],
                [n],  # of one that was taken over a later one may have been handed out
                why,
                state.at,
                is_counted=True,
                not_before_at=state.at + pause_s if pause_s else 0.0,
                traceback=told.traceback_text,
            )
        )
        self._outcomes.broken_off(task)
        self._patience.failed(task, told.recorded(payload))
        if pause_s:
            state.after(pause_s, Retry(task.id))
        else:
            state.queue.put_task(task)
        self._take_back(holder, [task.id])

    def _pause_after(self, task: TaskRecord, told: Failure) -> float:
        """Return how long a task waits after an error.

        Not at all where somebody waits for it and another service may do better.
        """
        if told.pause_s is not None:
            return min(told.pause_s, MAX_WISHED_PAUSE_S)
        if is_waited_for(task.batch.spec.source) and task.attempt.service:
            found = candidates.concerned(self._state.services, task.batch.spec.model)
            if any(model.reach and model.service.id not in task.failed_at for model in found):
                return 0.0
        errors = 0 if task.history is None else task.history.errors
        return min(MAX_RETRY_PAUSE_S, RETRY_PAUSE_S * 2.0**errors) * self._state.draw()

    def _land(self, tasks: Iterable[TaskRecord], *, is_success: bool | None) -> None:
        """Placed attempts end here; where one ended badly the task goes last from now on."""
        services = self._state.services
        for task in tasks if services.flights else ():
            services.end(task.id, self._state.now, is_success=is_success)
            if is_success is False and task.attempt.service:
                task.failed_at |= {task.attempt.service}

    def _take_back(self, worker_id: str, ids: list[str]) -> None:
        """The worker holds these no more, nor those that have ended just now."""
        worker = self._state.registry.workers.get(worker_id)
        if worker is not None:
            for task_id in ids:
                worker.outstanding.pop(task_id, None)
            self._state.registry.refresh(worker)

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

    def _part(self) -> float:
        return 0.5 + self._state.draw() / 2


def running_and_waiting(
    worker: WorkerState, held: list[TaskRecord]
) -> tuple[list[TaskRecord], list[TaskRecord]]:
    """Part what a worker holds into what can have been running and what cannot.

    Of its own the oldest ran, one per slot; what is placed at a service runs at once.
    """
    placed = [task for task in held if task.attempt.service]
    own = [task for task in held if not task.attempt.service] if placed else held
    return placed + own[: worker.slots], own[worker.slots :]


def _takes_down(task: TaskRecord, worker_id: str) -> int:
    """Return how many workers a task has taken down, this one being the last."""
    losses = () if task.history is None else task.history.losses
    return len({worker_id, *(name for name, _ in losses)})
