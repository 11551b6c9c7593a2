"""The broker's brain: messages in, effects out; no sockets, clock or randomness.

`Dispatcher.receive` takes one message, `tick` hands out what waits and does what is due;
both return effects. The parts, each with one concern: `intake` (submits), `handout`
(assignment, retries, deadlines), `endings` (outcomes), `attendance` (mesh workers),
`polling` (REST workers), `desk` (clients). They share the `Pool`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from d8mesh.core.attendance import Attendance
from d8mesh.core.desk import Desk
from d8mesh.core.effects import Effect, Loaded, Peer
from d8mesh.core.endings import Endings
from d8mesh.core.handout import Handout
from d8mesh.core.intake import Intake
from d8mesh.core.messages import (
    Ask,
    Chunks,
    ClientHello,
    Goodbye,
    Heartbeat,
    Listen,
    Message,
    Refused,
    Rehello,
    Release,
    Results,
    Stream,
    Submit,
    ToBroker,
    Unwatch,
    Watch,
    Work,
    WorkerHello,
)
from d8mesh.core.polling import Polling
from d8mesh.core.pool import Policy, Pool
from d8mesh.core.restored import Restored
from d8mesh.core.returns import MISLAID, Returns
from d8mesh.core.roster import Dialect, Seat
from d8mesh.core.streaming import Streaming
from d8mesh.core.task import Adopted, Closed, HandoutsSettled, Missed, Pruned
from d8mesh.core.tokens import Mint

#: How often leases, silences and retention are looked at.
SWEEP_S: Final = 0.5
#: A gap between ticks beyond this means that the broker itself stood still: nobody is blamed.
STANDSTILL_S: Final = 2.0
#: A worker heard so many leases ago may come back with its models: a lease until it is lost.
ABSENT_LEASES: Final = 2
#: How often finished tasks are pruned.
PRUNE_S: Final = 20.0
#: How often settled hand-outs and batches are forgotten: bounds what a restart looks through.
SETTLE_S: Final = 3.0
#: Finished batches that are noted as closed at once, or all when hand-outs are settled: a single
#: task's outcome shall not change two more pages of the journal. A restart sees it by itself.
CLOSED_AT_ONCE: Final = 256
#: Batches pruned in one step, so that a step does not disturb dispatch.
PRUNE_BATCHES: Final = 200

#: How often the wait for workers that are not back is noted, in leases.
WAIT_STEP_LEASES: Final = 0.25
#: The least that a worker gets to come back after a start, however long it was waited for
#: before: one that lives notices a new address after 4.5 s, and connects.
MIN_GRACE_S: Final = 6.0

ToWorkers = Heartbeat | Release | Chunks
ToClients = Submit | Watch | Unwatch | Listen | Ask


class Dispatcher:
    """One orchestrator's brain.

    Args:
        policy: the numbers the rules use.
        restored: what the journal holds.
        draw: returns a random number in [0, 1).
    """

    def __init__(
        self,
        policy: Policy,
        restored: Restored,
        draw: Callable[[], float],
        *,
        now: float = 0.0,
        at: float = 0.0,
    ) -> None:
        mint = Mint(restored.secret, restored.epoch)
        pool = self.pool = Pool(policy, mint, restored.epoch, draw, now=now, at=at)
        self._endings = Endings(pool)
        self._handout = Handout(pool, self._endings)
        self._returns = Returns(pool, self._handout)
        self._streaming = Streaming(pool, self._handout)
        parts = (pool, self._handout, self._endings, self._returns)
        self._attendance, self._polling = Attendance(*parts, self._streaming), Polling(*parts)
        self._intake = intake = Intake(pool, self._handout)
        self._desk = Desk(pool, self._endings, intake, self._streaming)
        self._next_sweep = self._last_tick = self._started = now
        self._started_at = at
        self._next_prune = now + PRUNE_S
        self._next_settle = now + SETTLE_S
        self._settled = 0
        #: worker id -> what it had at our start, until it is back or has been waited for enough
        self._orphans: dict[str, list[str]] = {}
        self._waited = restored.waited
        #: the workers that the journal says are waited for
        self._noted = set(restored.waited)
        self._waiting_since, self._next_note = now, now + WAIT_STEP_LEASES * policy.lease_s
        self._restore(restored)

    # ----------------------------------------------------------------- the loop's calls

    def receive(self, message: ToBroker, peer: Peer, now: float) -> list[Effect]:
        """Take in one message and return what is to be done."""
        pool = self.pool
        pool.at += now - pool.now
        pool.now = now
        match message:
            case Results():  # the way of every task
                if (seat := pool.roster.by_peer(peer)) is not None:
                    self._attendance.results(seat, message)
                else:
                    self._unknown(peer)
            case Heartbeat() | Release() | Chunks():
                self._from_worker(message, peer)
            case Submit() | Watch() | Unwatch() | Listen() | Ask():
                self._from_client(message, peer)
            case WorkerHello():
                if peer.routing_id in pool.clients_by_routing_id:
                    self._forbid(peer, "a client cannot become a worker")
                else:
                    self._attendance.hello(message, peer)
                    self._settle_orphans(message.worker_id, peer)
            case ClientHello():
                if pool.roster.by_peer(peer) is not None:
                    self._forbid(peer, "a worker cannot become a client")
                else:
                    self._desk.hello(message, peer)
            case Goodbye():
                self._goodbye(peer)
            case _:
                assert_never(message)
        return pool.take_effects()

    def loaded(self, answer: Loaded) -> list[Effect]:
        """Take in an answer of the journal."""
        self.pool.loaded(answer.number, answer.rows, answer.error)
        return self.pool.take_effects()

    def undelivered(self, peer: Peer, message: Message) -> list[Effect]:
        """A message could not be sent: its peer is gone, or reads too slowly.

        Hand-outs wait for another worker, uncounted; this one gets none until it speaks again.
        What a client missed it asks for again.
        """
        seat = self.pool.roster.by_peer(peer)
        if isinstance(message, Stream):
            self._streaming.undelivered(peer, message)
        elif seat is not None and isinstance(message, Work):
            seat.window = 0  # every word of a mesh worker says its window anew
            self.pool.roster.refresh(seat)
            ids = [task_id for group in message.groups for task_id in group.ids]
            tasks = [seat.outstanding[i] for i in ids if i in seat.outstanding]
            if tasks:
                why = f"it could not be sent to worker {seat.worker_id!r}"
                self._returns.take(seat.worker_id, tasks, why, MISLAID)
        return self.pool.take_effects()

    def tick(self, now: float, at: float) -> list[Effect]:
        """Do what is due, then hand out what waits; called at each wake-up of the loop.

        Args:
            now: monotonic seconds.
            at: Unix seconds.
        """
        pool = self.pool
        if now - self._last_tick > STANDSTILL_S:
            self._forgive(now)
        self._last_tick = pool.now = now
        pool.at = at
        self._handout.run_timers()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep()
        if not self._noted <= self._orphans.keys():  # some are back: their next grace is whole
            self._note_waits()
        self._handout.assign()
        self._polling.settle()
        self._endings.tell_all()
        self._attendance.acknowledge()
        if len(pool.closed) >= CLOSED_AT_ONCE:
            self._close_finished()
        return pool.take_effects()

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next, if nothing comes in before."""
        dues = (self._handout.next_deadline(), self._polling.next_deadline(), self._next_sweep)
        return min(due for due in dues if due is not None)

    def set_disk_low(self, is_low: bool) -> None:
        """Say whether there is room for new tasks on the disk."""
        self.pool.is_disk_low = is_low

    def drain(self) -> list[Effect]:
        """Take nothing new and hand nothing out; say goodbye to all."""
        pool = self.pool
        pool.is_draining = True
        for seat in list(pool.roster.seats.values()):
            if seat.dialect is Dialect.MESH and seat.is_live:
                pool.send(seat.peer, Goodbye("the orchestrator is shutting down"))
        for client in pool.clients.values():
            pool.send(client.peer, Goodbye("the orchestrator is shutting down"))
        return pool.take_effects()

    def check(self) -> None:
        """Assert what must hold between the collections (for tests; walks everything)."""
        pool = self.pool
        pool.ledger.check()
        pool.roster.check()
        for seat in pool.roster.seats.values():
            for task_id, task in seat.outstanding.items():
                assert pool.ledger.tasks.get(task_id) is task, task_id
                assert task.worker_id == seat.worker_id, task_id
        known = set(pool.clients)
        assert all(client.session == session for session, client in pool.clients.items())
        for sessions in (*pool.task_watchers.values(), *pool.listeners.values()):
            assert sessions
            assert sessions <= known, sessions

    # ------------------------------------------------------------------- who may say what

    def _from_worker(self, message: ToWorkers, peer: Peer) -> None:
        seat = self.pool.roster.by_peer(peer)
        if seat is None:
            self._unknown(peer)
            return
        match message:
            case Heartbeat():
                self._attendance.heartbeat(seat, message)
            case Release():
                self._attendance.release(seat, message)
            case Chunks():
                self._attendance.chunks(seat, message)
            case _:
                assert_never(message)

    def _from_client(self, message: ToClients, peer: Peer) -> None:
        client = self.pool.clients_by_routing_id.get(peer.routing_id)
        if client is None:
            self._unknown(peer)
            return
        client.last_heard = self.pool.now
        match message:
            case Submit():
                self._intake.submit(client, message)
            case Watch():
                self._desk.watch(client, message)
            case Unwatch():
                self._desk.unwatch(client, message.ids)
            case Listen():
                self._desk.listen(client, message)
            case Ask():
                self._desk.ask(client, message, self._polling.asks)
            case _:
                assert_never(message)

    def _unknown(self, peer: Peer) -> None:
        """Nobody said HELLO under this routing id, or a worker speaks a client's verbs."""
        pool = self.pool
        is_known = pool.roster.by_peer(peer) or peer.routing_id in pool.clients_by_routing_id
        if is_known:
            self._forbid(peer, "workers and clients have verbs of their own")
        else:
            pool.reject("session.unknown")
            pool.send(peer, Rehello("no session under this connection: say HELLO"))

    def _forbid(self, peer: Peer, why: str) -> None:
        self.pool.reject("access.forbidden")
        self.pool.send(peer, Refused(0, "access.forbidden", why))

    def _goodbye(self, peer: Peer) -> None:
        seat = self.pool.roster.by_peer(peer)
        client = self.pool.clients_by_routing_id.get(peer.routing_id)
        if seat is not None:
            self._attendance.goodbye(seat)
        elif client is not None:
            self._desk.leave(client)
            self._polling.forget_peer(peer)

    # -------------------------------------------------------------------------- the clock

    def _sweep(self) -> None:
        pool = self.pool
        for seat in list(pool.roster.seats.values()):
            if not seat.is_live and not seat.outstanding:
                continue
            if seat.dialect is Dialect.MESH:
                self._attendance.sweep(seat)
            else:
                self._polling.sweep(seat)
        for client in list(pool.clients.values()):
            if self._desk.is_silent(client):
                self._desk.leave(client)
        if self._orphans:
            self._give_up_orphans()
        is_young = pool.now - self._started < pool.policy.lease_s
        pool.roster.note_absent(pool.now - ABSENT_LEASES * pool.policy.lease_s, is_young=is_young)
        if not pool.ledger.queued:  # what lies in the lanes is cancelled, or past its deadline
            pool.queue.lanes.clear()
        if pool.now >= self._next_settle:
            self._next_settle = pool.now + SETTLE_S
            self._settle_handouts()
            self._close_finished()
        if pool.now >= self._next_prune:
            self._next_prune = math.inf  # until this step is answered: none is pruned twice
            self._streaming.forget_tails()
            self._prune()

    def _forgive(self, now: float) -> None:
        """The broker was stopped or starved: leases start anew, attempts get the time back."""
        gap_s = now - self._last_tick
        full_time_s = self._handout.full_time_s
        for seat in self.pool.roster.seats.values():
            seat.last_heard = max(seat.last_heard, now)
            for task in seat.outstanding.values():
                task.until = min(task.until + gap_s, now + full_time_s)
        for client in self.pool.clients.values():
            client.last_heard = now
        self._waiting_since += gap_s

    def _settle_handouts(self) -> None:
        pool = self.pool
        running = [task.handout for task in pool.ledger.tasks.values() if task.worker_id]
        below = min(running, default=pool.next_handout)
        if below > self._settled:
            self._settled = below
            pool.record(HandoutsSettled(below))

    def _close_finished(self) -> None:
        closed, self.pool.closed = self.pool.closed, []
        if closed:
            self.pool.record(Closed(closed))

    def _prune(self) -> None:
        pool = self.pool
        excess = max(0, pool.ledger.kept_finished - pool.policy.retention_count)
        # A wall clock that jumps ahead while we run makes nothing older than it is.
        steady_at = self._started_at + pool.now - self._started
        before_at = min(pool.at, steady_at) - pool.policy.retention_s

        def then(rows: list[tuple[object, ...]], error: str) -> None:
            batches = [(str(r[0]), r[1], r[2]) for r in rows if not error]
            if batches:
                pool.record(Pruned(batches, pool.at))  # type: ignore[arg-type]
            is_more = len(batches) == PRUNE_BATCHES  # the next step at the next sweep
            self._next_prune = pool.now + (0.0 if is_more else PRUNE_S)

        pool.load("prunable", (before_at, excess, PRUNE_BATCHES), then)

    # ------------------------------------------------------------------------- restarting

    def _restore(self, restored: Restored) -> None:
        pool, ledger = self.pool, self.pool.ledger
        pool.next_handout = restored.next_handout
        ledger.totals, ledger.workers = restored.totals, restored.workers
        ledger.kept_finished = restored.kept_finished
        ledger.take_keys(restored.keys)
        ledger.forgotten_sessions = max(0, restored.sessions - len(restored.accepted))
        for session, ranges in restored.accepted.items():
            for first, count in ranges:
                ledger.accept(session, first, count)
        unfinished = []
        for batch, finished in restored.batches:
            if len(finished) < batch.count:
                ledger.restore(batch, finished)
                unfinished.append(batch)
            else:
                pool.closed.append((batch.session, batch.first))
        self._polling.restore()
        self._restore_singles(restored)
        for batch in unfinished:
            self._handout.enqueue(batch)

    def _restore_singles(self, restored: Restored) -> None:
        """Make objects of the tasks that are more than a number in their batch."""
        ledger, waiting = self.pool.ledger, []
        for task_id, (n, history) in restored.troubled.items():
            task = ledger.open_task(task_id)
            if task is None:
                continue
            task.n, task.history = n, history
            if task_id not in restored.in_flight:
                waiting.append(task)
        for task_id, (n, worker_id) in restored.in_flight.items():
            task = ledger.open_task(task_id)
            if task is None:
                continue
            ledger.apply(Adopted(worker_id, [task_id], [n]))
            seat = self.pool.roster.seats.get(worker_id)
            if seat is not None and seat.dialect is Dialect.POLLING:
                self._hold_for_polling(seat, task_id)
            else:
                self._orphans.setdefault(worker_id, []).append(task_id)
        for task in waiting:
            self._handout.resume(task)

    def _hold_for_polling(self, seat: Seat, task_id: str) -> None:
        """A polling worker is silent while it runs: its attempts get their whole time again."""
        task = self.pool.ledger.tasks[task_id]
        task.remember().holders.add(seat.worker_id)
        seat.outstanding[task_id] = task
        seat.last_heard = self.pool.now
        task.until = self.pool.now + self.pool.policy.task_timeout_s

    def _settle_orphans(self, worker_id: str, peer: Peer) -> None:
        """A worker is back after our start: its HELLO names all it holds, the rest waits again.

        Without this a broker that dies more often than a lease would never hand them out.
        """
        seat = self.pool.roster.by_peer(peer)
        if seat is not None and seat.worker_id == worker_id and worker_id in self._orphans:
            self._give_up(worker_id, self._orphans.pop(worker_id), "its worker holds it no more")

    def _give_up_orphans(self) -> None:
        """What no worker came back with for one lease waits again, uncounted.

        How long a worker was waited for is noted, as the next start goes on with that: else a
        broker that dies more often than a lease would wait for ever for one that is dead.
        """
        waited_s, lease_s = self._waited_s(), self.pool.policy.lease_s
        for worker_id in list(self._orphans):
            grace_s = max(MIN_GRACE_S, lease_s - self._waited.get(worker_id, 0.0))
            if waited_s >= grace_s:
                ids = self._orphans.pop(worker_id)
                self._give_up(worker_id, ids, "its worker did not come back")
        if self._orphans and self.pool.now >= self._next_note:
            self._note_waits()

    def _waited_s(self) -> float:
        """Return how long workers were waited for since our start, as far as we ran.

        By the last tick: one after a standstill comes only behind the messages.
        """
        return self._last_tick - self._waiting_since

    def _note_waits(self) -> None:
        now_s = self._waited_s()
        waited = {each: self._waited.get(each, 0.0) + now_s for each in self._orphans}
        self.pool.record(Missed(list(waited), list(waited.values())))
        self._noted = set(waited)
        self._next_note = self.pool.now + WAIT_STEP_LEASES * self.pool.policy.lease_s

    def _give_up(self, worker_id: str, ids: Sequence[str], why: str) -> None:
        seat = self.pool.roster.seats.get(worker_id)
        tasks = [self.pool.ledger.tasks.get(task_id) for task_id in ids]
        lost = [
            task
            for task in tasks
            if task is not None
            and task.worker_id == worker_id
            and (seat is None or task.id not in seat.outstanding)
        ]
        if lost:
            self._handout.requeue(worker_id, lost, why)
