"""The polling dialect: workers that register, poll and report over REST.

They get leases, retries and the rest like mesh workers; what differs is that they are
silent while they run and show no tokens (`docs/RELIABILITY.md`, rule 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import structs

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.outcomes import MAX_REASON_CHARS, TaskOutcomes, failure_payload
from d8mesh.core.broker.placement import DOCUMENTED_TYPES
from d8mesh.core.broker.records import TaskRecord, registration
from d8mesh.core.broker.returns import LEAVING, MISLAID, UNSTARTED, Returns
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import BrokerState, ThankForReport
from d8mesh.core.broker.store import FinishedStates, OutcomesOf, StoreAnswer
from d8mesh.core.broker.worker_registry import Dialect, Poll, WorkerState
from d8mesh.core.protocol.messages import MAX_NAMES, UNKNOWN_STATE, Query
from d8mesh.core.protocol.task import Dismissed, Enrolled, TaskState
from d8mesh.errors import (
    ForbiddenError,
    InvalidTaskError,
    UnknownTaskError,
    UnknownWorkerError,
    WorkerIdTakenError,
)

#: The longest a poll may wait; the REST door cuts longer wishes.
MAX_WAIT_S: Final = 60.0
#: Beyond its time a poll waits this long for tasks that are being read from the disk: who asks
#: every five seconds shall not lose five.
LOAD_S: Final = 2.0
#: Registrations kept; a flood of made-up ids must not fill the memory.
MAX_POLLING_WORKERS: Final = 10_000
#: Tasks that one polling worker may hold at the same time.
MAX_POLLING_SLOTS: Final = 64

Args: TypeAlias = dict[str, object]


class Polling:
    """Serves the polling workers."""

    def __init__(
        self, state: BrokerState, scheduler: Scheduler, outcomes: TaskOutcomes, returns: Returns
    ) -> None:
        self._state = state
        self._returns = returns
        self._scheduler = scheduler
        self._outcomes = outcomes
        self._waiting: dict[str, WorkerState] = {}

    def ask(self, peer: Peer, message: Query) -> None:
        """Answer a question.

        Raises:
            D8Error: it cannot be answered, as the error says.
        """
        answer = _POLL_QUESTIONS.get(message.what)
        if answer is None:
            raise ForbiddenError(f"{message.what!r} is no question")
        answer(self, peer, message.request, message.args)

    def restore(self) -> None:
        """Take in the workers that the store has as registered, offline until they speak."""
        for worker_id, record in self._state.task_table.workers.items():
            if record.capabilities is not None:
                capabilities, at = record.registered()
                worker = self._worker(worker_id, record.worker_type, capabilities)
                worker.last_heard_at = at  # of its later signs of life nothing is stored
                self._state.registry.leave(worker)

    def settle(self) -> None:
        """Answer the polls whose time is over with no task; called after each assignment."""
        for worker_id, worker in list(self._waiting.items()):
            poll = worker.poll
            if poll is None:
                del self._waiting[worker_id]
            elif self._is_over(worker, poll):
                worker.poll = None
                del self._waiting[worker_id]
                self._state.answer(poll.peer, poll.request, {"task": None})
                self._state.registry.refresh(worker)

    def _is_over(self, worker: WorkerState, poll: Poll) -> bool:
        """Return whether a poll waits no longer; once tasks for it are being loaded, for these."""
        if poll.until > self._state.now and not poll.is_loading:
            return False
        is_loading = self._scheduler.is_loading(worker.types)
        if poll.is_loading or not is_loading:
            return not is_loading or poll.until <= self._state.now
        poll.is_loading, poll.until = True, self._state.now + LOAD_S
        return False

    def next_deadline(self) -> float:
        """Return when the next waiting poll is to be answered."""
        return min((s.poll.until for s in self._waiting.values() if s.poll), default=math.inf)

    def forget_peer(self, peer: Peer) -> None:
        """The asker is gone: its polls wait no longer."""
        for worker in self._waiting.values():
            if worker.poll is not None and worker.poll.peer.routing_id == peer.routing_id:
                worker.poll = None
                self._state.registry.refresh(worker)

    def sweep(self, worker: WorkerState) -> None:
        """Look at one polling worker: the time of each attempt, silence.

        A worker that speaks may have never got an attempt whose answer was lost: what it
        says otherwise does not keep that.
        """
        state = self._state
        is_silent = state.now > worker.last_heard + state.policy.polling_timeout_s
        is_lost = is_silent and worker.poll is None
        over = [task for task in worker.outstanding.values() if state.now > task.attempt.until]
        if over:
            why = "worker lost" if is_lost else "timed out"
            self._returns.requeue(worker.worker_id, over, why, is_counted=True, is_loss=is_lost)
        if worker.poll is not None:
            return
        worker.note_asking(state.now)
        if is_silent and not worker.outstanding:
            state.registry.leave(worker)

    # ----------------------------------------------------------------- the questions

    def _register(self, peer: Peer, request: int, args: Args) -> None:
        state = self._state
        worker_id, worker_type = _text(args, "worker_id"), _text(args, "worker_type")
        worker = state.registry.workers.get(worker_id)
        if worker is not None and worker.dialect is Dialect.MESH and worker.is_live:
            raise WorkerIdTakenError(f"{worker_id!r} is the id of a mesh worker at work")
        if state.members.owner_of(worker_id) is not None:
            raise WorkerIdTakenError(
                f"{worker_id!r} belongs to the key of a mesh worker: `join forget {worker_id}` at "
                "the orchestrator frees it"
            )
        if worker is None and len(state.registry.workers) >= MAX_POLLING_WORKERS:
            raise ForbiddenError(f"{MAX_POLLING_WORKERS} workers are registered: no more fit")
        stored = registration(args.get("capabilities") or {}, state.at)
        self._state.record(Enrolled(worker_id, worker_type, stored))
        capabilities, _ = state.task_table.workers[worker_id].registered()
        worker = self._worker(worker_id, worker_type, capabilities)
        self._heard(worker)
        self._state.answer(peer, request, {}, waits=True)

    def _heartbeat(self, peer: Peer, request: int, args: Args) -> None:
        """The attempts that it names live on; one slot has one, and need not name it."""
        worker = self._known(args)
        self._heard(worker)
        named = args.get("task_ids")
        if not isinstance(named, list):
            named = list(worker.outstanding) if worker.slots == 1 else []
        until = self._state.now + self._state.policy.polling_timeout_s
        for task_id in named:
            task = worker.outstanding.get(task_id) if isinstance(task_id, str) else None
            if task is not None:
                again = max(task.attempt.until, until)
                task.attempt = structs.replace(task.attempt, until=again)
        self._state.answer(peer, request, {})

    def _unregister(self, peer: Peer, request: int, args: Args) -> None:
        worker = self._known(args)
        self._drop_poll(worker)
        tasks = list(worker.outstanding.values())
        why = f"its worker {worker.worker_id!r} left"
        self._returns.take(worker.worker_id, tasks, why, LEAVING)
        self._state.record(Dismissed(worker.worker_id))
        self._state.registry.remove(worker)
        self._state.answer(peer, request, {}, waits=True)

    def _next(self, peer: Peer, request: int, args: Args) -> None:
        state, worker = self._state, self._known(args)
        self._heard(worker)
        waiting = worker.poll
        if waiting is not None and (waiting.peer, waiting.request) == (peer, request):
            return  # sent again: it waits already
        self._drop_poll(worker)
        if worker.outstanding and len(worker.outstanding) >= worker.slots:
            # It asks though its hands are full: a reply or a report got lost on the way.
            tasks = list(worker.outstanding.values())
            name = worker.worker_id
            why = f"worker {name!r} asked for another; no report of this one was taken"
            self._returns.take(worker.worker_id, tasks, why, MISLAID)
        wait_s = args.get("wait_s")
        if not isinstance(wait_s, (int, float)) or not wait_s >= 0.0:  # NaN is not either
            wait_s = 0.0
        worker.poll = Poll(peer, request, state.now + min(float(wait_s), MAX_WAIT_S))
        self._waiting[worker.worker_id] = worker
        worker.has_asked, worker.asked = True, state.now
        state.registry.refresh(worker)

    def _leave(self, peer: Peer, request: int, args: Args) -> None:
        """Who polled has hung up: its poll waits no longer, a task it was just handed goes back."""
        worker = self._known(args)
        self._drop_poll(worker)
        self._state.registry.refresh(worker)
        task = worker.outstanding.get(str(args.get("task_id")))
        if task is not None:
            why = f"worker {worker.worker_id!r} hung up before it had this"
            self._returns.take(worker.worker_id, [task], why, UNSTARTED)
        self._state.answer(peer, request, {})

    def _report(self, peer: Peer, request: int, args: Args) -> None:
        state = self._state
        task_id, worker_id = _text(args, "task_id"), _text(args, "worker_id")
        payload, is_success = args.get("result"), args.get("is_success") is True
        if not isinstance(payload, bytes):
            raise InvalidTaskError("result: expected bytes")
        worker = state.registry.workers.get(worker_id)
        if worker is not None and worker.dialect is Dialect.POLLING:
            self._heard(worker)
        if state.task_table.state_of(task_id) is None:
            self._state.ask_for(peer, OutcomesOf([task_id]), ThankForReport(peer, request))
            return
        task = state.task_table.tasks.get(task_id)
        if task is None or self._is_mesh(worker_id) or not self._has_held(worker_id, task):
            raise ForbiddenError(f"{task_id} was not given to worker {worker_id!r}")
        is_holder = task.state is TaskState.RUNNING and task.worker_id == worker_id
        if is_success:
            if is_holder or not task.batch.spec.is_fenced:
                self._outcomes.complete(worker_id, [task_id], [task.n], [payload])
                if worker is not None:
                    worker.failures_in_a_row = 0
        elif is_holder:
            self._returns.attempt_failed(worker_id, task, task.n, payload, is_final=False)
        self._state.answer(peer, request, {}, waits=True)

    def _refused(self, peer: Peer, request: int, args: Args) -> None:
        """A report could not be taken: the attempt has failed, of whom it was, if that is known.

        One that names no worker is the holder's; one of somebody else changes nothing.
        """
        state = self._state
        task_id, error = _text(args, "task_id"), str(args.get("error") or "")[:MAX_REASON_CHARS]
        task = state.task_table.tasks.get(task_id)
        holder = "" if task is None else task.worker_id
        worker = state.registry.workers.get(holder)
        is_polling = worker is not None and worker.dialect is Dialect.POLLING
        if task is not None and is_polling and args.get("worker_id") in (None, "", holder):
            why = f"the worker's report could not be taken: {error}"
            payload = failure_payload(why, "task.report", holder)
            self._returns.attempt_failed(holder, task, task.n, payload, is_final=False)
        self._state.answer(peer, request, {}, waits=True)

    def _is_mesh(self, worker_id: str) -> bool:
        """A mesh worker shows its key and a token: whoever only says its name is not it."""
        worker = self._state.registry.workers.get(worker_id)
        is_at_mesh = worker is not None and worker.dialect is Dialect.MESH
        return is_at_mesh or self._state.members.owner_of(worker_id) is not None

    @staticmethod
    def _has_held(worker_id: str, task: TaskRecord) -> bool:
        return task.worker_id == worker_id or (
            task.history is not None and worker_id in task.history.holders
        )

    def thank(self, asked: ThankForReport, answer: StoreAnswer) -> None:
        """A report for a finished task changes nothing; for an unknown one it is an error.

        Raises:
            UnknownTaskError: as it says.
        """
        if not isinstance(answer, FinishedStates) or answer.states[0] == UNKNOWN_STATE:
            raise UnknownTaskError
        self._state.metrics.duplicates += 1
        self._state.answer(asked.peer, asked.request, {})

    # ------------------------------------------------------------------------ workers

    def _worker(self, worker_id: str, worker_type: str, offered: dict[str, object]) -> WorkerState:
        """Return the polling worker of that id, made or brought up to date."""
        registry = self._state.registry
        worker = registry.workers.get(worker_id)
        if worker is None or worker.dialect is not Dialect.POLLING:
            worker = WorkerState(worker_id, Dialect.POLLING, asked=self._state.now)
            registry.add(worker)
        slots = offered.get("slots", 1)
        worker.slots = slots if isinstance(slots, int) and 1 <= slots <= MAX_POLLING_SLOTS else 1
        worker.worker_type = worker_type
        types = _names(offered.get("task_types")) or list(DOCUMENTED_TYPES)
        models = _names(offered.get("models")) or _names([offered.get("model")])
        registry.offer(worker, types, models)
        return worker

    def _known(self, args: Args) -> WorkerState:
        worker = self._state.registry.workers.get(_text(args, "worker_id"))
        if worker is None or worker.dialect is not Dialect.POLLING:
            raise UnknownWorkerError
        return worker

    def _heard(self, worker: WorkerState) -> None:
        worker.last_heard, worker.last_heard_at = self._state.now, self._state.at
        if not worker.is_live:
            self._state.registry.rejoin(worker)

    def _drop_poll(self, worker: WorkerState) -> None:
        """Answer an older waiting poll of the same worker with no task."""
        if worker.poll is not None:
            self._state.answer(worker.poll.peer, worker.poll.request, {"task": None})
            worker.poll = None


def _text(args: Args, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise InvalidTaskError(f"{name}: expected a text of 1 to 128 characters")
    return value


def _names(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [v for v in value[:MAX_NAMES] if isinstance(v, str) and 1 <= len(v) <= 128]


_POLL_QUESTIONS: Final[dict[str, Callable[[Polling, Peer, int, Args], None]]] = {
    "poll.register": Polling._register,
    "poll.heartbeat": Polling._heartbeat,
    "poll.unregister": Polling._unregister,
    "poll.next": Polling._next,
    "poll.leave": Polling._leave,
    "poll.report": Polling._report,
    "poll.refused": Polling._refused,
}
