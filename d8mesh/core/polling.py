"""The polling dialect: workers that register, poll and report over REST.

They get leases, retries and the rest like mesh workers; what differs is that they are
silent while they run and show no tokens (`promises.md` rule 5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from d8mesh.core.effects import Peer
from d8mesh.core.endings import MAX_REASON_CHARS, Endings, failure_payload
from d8mesh.core.handout import Handout
from d8mesh.core.messages import MAX_NAMES
from d8mesh.core.placement import DOCUMENTED_TYPES
from d8mesh.core.pool import Pool
from d8mesh.core.records import Task, registration
from d8mesh.core.returns import LEAVING, MISLAID, Returns
from d8mesh.core.roster import Dialect, Poll, Seat
from d8mesh.core.task import Dismissed, Enrolled, TaskState
from d8mesh.errors import (
    D8Error,
    ForbiddenError,
    InvalidTaskError,
    UnknownTaskError,
    UnknownWorkerError,
    WorkerIdTakenError,
)

#: The longest a poll may wait; the shim cuts longer wishes.
MAX_WAIT_S: Final = 60.0
#: Beyond its time a poll waits this long for tasks that are being read from the disk: who asks
#: every five seconds shall not lose five.
LOAD_S: Final = 2.0
#: Registrations kept; a flood of made-up ids must not fill the memory.
MAX_POLLING_WORKERS: Final = 10_000
#: Tasks that one polling worker may hold at the same time.
MAX_SLOTS: Final = 64

Args: TypeAlias = dict[str, object]


class Polling:
    """Serves the polling workers of a pool."""

    def __init__(self, pool: Pool, handout: Handout, endings: Endings, returns: Returns) -> None:
        self._pool = pool
        self._returns = returns
        self._handout = handout
        self._endings = endings
        self._waiting: dict[str, Seat] = {}
        self.asks: dict[str, Callable[[Peer, int, Args], None]] = {
            "poll.register": self._register,
            "poll.heartbeat": self._heartbeat,
            "poll.unregister": self._unregister,
            "poll.next": self._next,
            "poll.report": self._report,
            "poll.refused": self._refused,
        }

    def restore(self) -> None:
        """Give the registered workers of the journal their seats, offline until they speak."""
        for worker_id, record in self._pool.ledger.workers.items():
            if record.capabilities is not None:
                capabilities, at = record.registered()
                seat = self._seat(worker_id, record.worker_type, capabilities)
                seat.last_heard_at = at  # of its later signs of life nothing is stored
                self._pool.roster.leave(seat)

    def settle(self) -> None:
        """Answer the polls whose time is over with no task; called after each assignment."""
        for worker_id, seat in list(self._waiting.items()):
            poll = seat.poll
            if poll is None:
                del self._waiting[worker_id]
            elif self._is_over(seat, poll):
                seat.poll = None
                del self._waiting[worker_id]
                self._pool.answer(poll.peer, poll.request, {"task": None})
                self._pool.roster.refresh(seat)

    def _is_over(self, seat: Seat, poll: Poll) -> bool:
        """Return whether a poll waits no longer; once tasks for it are being loaded, for these."""
        if poll.until > self._pool.now and not poll.is_loading:
            return False
        is_loading = self._handout.is_loading(seat.types)
        if poll.is_loading or not is_loading:
            return not is_loading or poll.until <= self._pool.now
        poll.is_loading, poll.until = True, self._pool.now + LOAD_S
        return False

    def next_deadline(self) -> float | None:
        """Return when the next waiting poll is to be answered."""
        return min((s.poll.until for s in self._waiting.values() if s.poll), default=None)

    def forget_peer(self, peer: Peer) -> None:
        """The asker is gone: its polls wait no longer."""
        for seat in self._waiting.values():
            if seat.poll is not None and seat.poll.peer.routing_id == peer.routing_id:
                seat.poll = None
                self._pool.roster.refresh(seat)

    def sweep(self, seat: Seat) -> None:
        """Look at one polling seat: the time of each attempt, silence.

        A worker that speaks may have never got an attempt whose answer was lost: what it
        says otherwise does not keep that.
        """
        pool = self._pool
        is_silent = pool.now > seat.last_heard + pool.policy.polling_timeout_s
        is_lost = is_silent and seat.poll is None
        over = [task for task in seat.outstanding.values() if pool.now > task.until]
        if over:
            why = "worker lost" if is_lost else "timed out"
            self._handout.requeue(seat.worker_id, over, why, is_counted=True, is_loss=is_lost)
        if seat.poll is not None:
            return
        seat.note_asking(pool.now)
        if is_silent and not seat.outstanding:
            pool.roster.leave(seat)

    # ----------------------------------------------------------------- the questions

    def _register(self, peer: Peer, request: int, args: Args) -> None:
        pool = self._pool
        worker_id, worker_type = _text(args, "worker_id"), _text(args, "worker_type")
        seat = pool.roster.seats.get(worker_id)
        if seat is not None and seat.dialect is Dialect.MESH and seat.is_live:
            raise WorkerIdTakenError(f"{worker_id!r} is the id of a mesh worker at work")
        if seat is None and len(pool.roster.seats) >= MAX_POLLING_WORKERS:
            raise ForbiddenError(f"{MAX_POLLING_WORKERS} workers are registered: no more fit")
        stored = registration(args.get("capabilities") or {}, pool.at)
        pool.record(Enrolled(worker_id, worker_type, stored, pool.at))
        capabilities, _ = pool.ledger.workers[worker_id].registered()
        seat = self._seat(worker_id, worker_type, capabilities)
        self._heard(seat)
        pool.answer(peer, request, {}, waits=True)

    def _heartbeat(self, peer: Peer, request: int, args: Args) -> None:
        """The attempts that it names live on; one slot has one, and need not name it."""
        seat = self._known(args)
        self._heard(seat)
        named = args.get("task_ids")
        if not isinstance(named, list):
            named = list(seat.outstanding) if seat.slots == 1 else []
        until = self._pool.now + self._pool.policy.polling_timeout_s
        for task_id in named:
            task = seat.outstanding.get(task_id) if isinstance(task_id, str) else None
            if task is not None:
                task.until = max(task.until, until)
        self._pool.answer(peer, request, {})

    def _unregister(self, peer: Peer, request: int, args: Args) -> None:
        seat = self._known(args)
        self._drop_poll(seat)
        if seat.outstanding:
            tasks = list(seat.outstanding.values())
            why = f"its worker {seat.worker_id!r} left"
            self._returns.take(seat.worker_id, tasks, why, LEAVING)
        self._pool.record(Dismissed(seat.worker_id))
        self._pool.roster.remove(seat)
        self._pool.answer(peer, request, {}, waits=True)

    def _next(self, peer: Peer, request: int, args: Args) -> None:
        pool, seat = self._pool, self._known(args)
        self._heard(seat)
        self._drop_poll(seat)
        if seat.outstanding and len(seat.outstanding) >= seat.slots:
            # It asks though its hands are full: a reply or a report got lost on the way.
            tasks = list(seat.outstanding.values())
            why = f"worker {seat.worker_id!r} asked for another; no report of this one was taken"
            self._returns.take(seat.worker_id, tasks, why, MISLAID)
        wait_s = args.get("wait_s")
        if not isinstance(wait_s, (int, float)) or not wait_s >= 0.0:  # NaN is not either
            wait_s = 0.0
        seat.poll = Poll(peer, request, pool.now + min(float(wait_s), MAX_WAIT_S))
        self._waiting[seat.worker_id] = seat
        seat.has_asked, seat.asked = True, pool.now
        pool.roster.refresh(seat)

    def _report(self, peer: Peer, request: int, args: Args) -> None:
        pool = self._pool
        task_id, worker_id = _text(args, "task_id"), _text(args, "worker_id")
        payload, is_success = args.get("result"), args.get("is_success") is True
        if not isinstance(payload, bytes):
            raise InvalidTaskError("result: expected bytes")
        seat = pool.roster.seats.get(worker_id)
        if seat is not None and seat.dialect is Dialect.POLLING:
            self._heard(seat)
        if pool.ledger.state_of(task_id) is None:
            self._report_finished(peer, request, task_id)
            return
        task = pool.ledger.tasks.get(task_id)
        if task is None or not self._has_held(worker_id, task):
            raise ForbiddenError(f"{task_id} was not given to worker {worker_id!r}")
        is_holder = task.state is TaskState.RUNNING and task.worker_id == worker_id
        if is_success:
            if is_holder or not task.batch.spec.is_fenced:
                self._endings.complete(worker_id, [task_id], [task.n], [payload])
                if seat is not None:
                    seat.failures_in_a_row = 0
        elif is_holder:
            self._handout.attempt_failed(worker_id, task, task.n, payload, is_final=False)
        pool.answer(peer, request, {}, waits=True)

    def _refused(self, peer: Peer, request: int, args: Args) -> None:
        """A report could not be taken: the attempt has failed, of whom it was, if that is known.

        One that names no worker is the holder's; one of somebody else changes nothing.
        """
        pool = self._pool
        task_id, error = _text(args, "task_id"), str(args.get("error") or "")[:MAX_REASON_CHARS]
        task = pool.ledger.tasks.get(task_id)
        holder = "" if task is None else task.worker_id
        seat = pool.roster.seats.get(holder)
        is_polling = seat is not None and seat.dialect is Dialect.POLLING
        if task is not None and is_polling and args.get("worker_id") in (None, "", holder):
            why = f"the worker's report could not be taken: {error}"
            payload = failure_payload(why, "task.report", holder)
            self._handout.attempt_failed(holder, task, task.n, payload, is_final=False)
        pool.answer(peer, request, {}, waits=True)

    @staticmethod
    def _has_held(worker_id: str, task: Task) -> bool:
        return task.worker_id == worker_id or (
            task.history is not None and worker_id in task.history.holders
        )

    def _report_finished(self, peer: Peer, request: int, task_id: str) -> None:
        """A report for a finished task changes nothing; for an unknown one it is an error."""

        def then(rows: list[tuple[object, ...]], error: str) -> None:
            if error:
                self._pool.refuse(peer, request, D8Error(error))
            elif not rows:
                self._pool.refuse(peer, request, UnknownTaskError())
            else:
                self._pool.duplicates += 1
                self._pool.answer(peer, request, {})

        self._pool.load_for(peer, "outcomes", ([task_id],), then)

    # ------------------------------------------------------------------------ seats

    def _seat(self, worker_id: str, worker_type: str, offered: dict[str, object]) -> Seat:
        """Return the worker's seat, made or brought up to date."""
        roster = self._pool.roster
        seat = roster.seats.get(worker_id)
        if seat is None or seat.dialect is not Dialect.POLLING:
            seat = Seat(worker_id, Dialect.POLLING, asked=self._pool.now)
            roster.add(seat)
        slots = offered.get("slots", 1)
        seat.slots = slots if isinstance(slots, int) and 1 <= slots <= MAX_SLOTS else 1
        seat.worker_type = worker_type
        types = _names(offered.get("task_types")) or list(DOCUMENTED_TYPES)
        models = _names(offered.get("models")) or _names([offered.get("model")])
        roster.offer(seat, types, models)
        return seat

    def _known(self, args: Args) -> Seat:
        seat = self._pool.roster.seats.get(_text(args, "worker_id"))
        if seat is None or seat.dialect is not Dialect.POLLING:
            raise UnknownWorkerError
        return seat

    def _heard(self, seat: Seat) -> None:
        seat.last_heard, seat.last_heard_at = self._pool.now, self._pool.at
        if not seat.is_live:
            self._pool.roster.rejoin(seat)

    def _drop_poll(self, seat: Seat) -> None:
        """Answer an older waiting poll of the same worker with no task."""
        if seat.poll is not None:
            self._pool.answer(seat.poll.peer, seat.poll.request, {"task": None})
            seat.poll = None


def _text(args: Args, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise InvalidTaskError(f"{name}: expected a text of 1 to 128 characters")
    return value


def _names(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [v for v in value[:MAX_NAMES] if isinstance(v, str) and 1 <= len(v) <= 128]
