"""The broker's brain: messages in, effects out; no sockets, clock or randomness.

`Dispatcher.receive` takes one message, `tick` hands out what waits and does what is due;
both return effects. The parts, each with one concern: `admission` (submits), `scheduler`
(assignment, retries, deadlines), `outcomes` (outcomes), `worker_sessions` (mesh workers),
`polling` (REST workers), `client_requests` (clients). They share the `BrokerState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from d8mesh.core.broker.admission import Admission
from d8mesh.core.broker.client_requests import ClientRequests
from d8mesh.core.broker.effects import Effect, Loaded, Peer
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.polling import Polling
from d8mesh.core.broker.returns import MISLAID, Returns
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import BrokerState, Policy
from d8mesh.core.broker.store import Restored
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.broker.worker_sessions import WorkerSessions
from d8mesh.core.protocol.messages import (
    Chunks,
    ClientHello,
    Goodbye,
    Heartbeat,
    Listen,
    Message,
    Query,
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
from d8mesh.core.protocol.task import Adopted, AssignmentsSettled, Closed, Pruned, WorkersMissed
from d8mesh.core.protocol.tokens import TokenSigner

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
ToClients = Submit | Watch | Unwatch | Listen | Query


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
        signer = TokenSigner(restored.secret, restored.epoch)
        state = self.state = BrokerState(policy, signer, restored.epoch, draw, now=now, at=at)
        self._outcomes = TaskOutcomes(state)
        self._scheduler = Scheduler(state, self._outcomes)
        self._returns = Returns(state, self._scheduler)
        self._streaming = Streaming(state, self._scheduler)
        parts = (state, self._scheduler, self._outcomes, self._returns)
        self._worker_sessions, self._polling = (
            WorkerSessions(*parts, self._streaming),
            Polling(*parts),
        )
        self._admission = admission = Admission(state, self._scheduler)
        self._client_requests = ClientRequests(state, self._outcomes, admission, self._streaming)
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
        state = self.state
        state.at += now - state.now
        state.now = now
        match message:
            case Results():  # the way of every task
                if (worker_state := state.registry.by_peer(peer)) is not None:
                    self._worker_sessions.results(worker_state, message)
                else:
                    self._unknown(peer)
            case Heartbeat() | Release() | Chunks():
                self._from_worker(message, peer)
            case Submit() | Watch() | Unwatch() | Listen() | Query():
                self._from_client(message, peer)
            case WorkerHello():
                if peer.routing_id in state.clients_by_routing_id:
                    self._forbid(peer, "a client cannot become a worker")
                else:
                    self._worker_sessions.hello(message, peer)
                    self._settle_orphans(message.worker_id, peer)
            case ClientHello():
                if state.registry.by_peer(peer) is not None:
                    self._forbid(peer, "a worker cannot become a client")
                else:
                    self._client_requests.hello(message, peer)
            case Goodbye():
                self._goodbye(peer)
            case _:
                assert_never(message)
        return state.take_effects()

    def loaded(self, answer: Loaded) -> list[Effect]:
        """Take in an answer of the journal."""
        self.state.loaded(answer.number, answer.rows, answer.error)
        return self.state.take_effects()

    def undelivered(self, peer: Peer, message: Message) -> list[Effect]:
        """A message could not be sent: its peer is gone, or reads too slowly.

        Hand-outs wait for another worker, uncounted; this one gets none until it speaks again.
        What a client missed it asks for again.
        """
        worker_state = self.state.registry.by_peer(peer)
        if isinstance(message, Stream):
            self._streaming.undelivered(peer, message)
        elif worker_state is not None and isinstance(message, Work):
            worker_state.window = 0  # every word of a mesh worker says its window anew
            self.state.registry.refresh(worker_state)
            ids = [task_id for group in message.groups for task_id in group.ids]
            tasks = [worker_state.outstanding[i] for i in ids if i in worker_state.outstanding]
            if tasks:
                why = f"it could not be sent to worker {worker_state.worker_id!r}"
                self._returns.take(worker_state.worker_id, tasks, why, MISLAID)
        return self.state.take_effects()

    def tick(self, now: float, at: float) -> list[Effect]:
        """Do what is due, then hand out what waits; called at each wake-up of the loop.

        Args:
            now: monotonic seconds.
            at: Unix seconds.
        """
        state = self.state
        if now - self._last_tick > STANDSTILL_S:
            self._forgive(now)
        self._last_tick = state.now = now
        state.at = at
        self._scheduler.run_timers()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep()
        if not self._noted <= self._orphans.keys():  # some are back: their next grace is whole
            self._note_waits()
        self._scheduler.assign()
        self._polling.settle()
        self._outcomes.tell_all()
        self._worker_sessions.acknowledge()
        if len(state.closed) >= CLOSED_AT_ONCE:
            self._close_finished()
        return state.take_effects()

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next, if nothing comes in before."""
        dues = (self._scheduler.next_deadline(), self._polling.next_deadline(), self._next_sweep)
        return min(due for due in dues if due is not None)

    def set_disk_low(self, is_low: bool) -> None:
        """Say whether there is room for new tasks on the disk."""
        self.state.is_disk_low = is_low

    def drain(self) -> list[Effect]:
        """Take nothing new and hand nothing out; say goodbye to all."""
        state = self.state
        state.is_draining = True
        for worker_state in list(state.registry.worker_states.values()):
            if worker_state.dialect is Dialect.MESH and worker_state.is_live:
                state.send(worker_state.peer, Goodbye("the orchestrator is shutting down"))
        for client in state.clients.values():
            state.send(client.peer, Goodbye("the orchestrator is shutting down"))
        return state.take_effects()

    def check(self) -> None:
        """Assert what must hold between the collections (for tests; walks everything)."""
        state = self.state
        state.task_table.check()
        state.registry.check()
        for worker_state in state.registry.worker_states.values():
            for task_id, task in worker_state.outstanding.items():
                assert state.task_table.tasks.get(task_id) is task, task_id
                assert task.worker_id == worker_state.worker_id, task_id
        known = set(state.clients)
        assert all(client.session == session for session, client in state.clients.items())
        for sessions in (*state.task_watchers.values(), *state.listeners.values()):
            assert sessions
            assert sessions <= known, sessions

    # ------------------------------------------------------------------- who may say what

    def _from_worker(self, message: ToWorkers, peer: Peer) -> None:
        worker_state = self.state.registry.by_peer(peer)
        if worker_state is None:
            self._unknown(peer)
            return
        match message:
            case Heartbeat():
                self._worker_sessions.heartbeat(worker_state, message)
            case Release():
                self._worker_sessions.release(worker_state, message)
            case Chunks():
                self._worker_sessions.chunks(worker_state, message)
            case _:
                assert_never(message)

    def _from_client(self, message: ToClients, peer: Peer) -> None:
        client = self.state.clients_by_routing_id.get(peer.routing_id)
        if client is None:
            self._unknown(peer)
            return
        client.last_heard = self.state.now
        match message:
            case Submit():
                self._admission.submit(client, message)
            case Watch():
                self._client_requests.watch(client, message)
            case Unwatch():
                self._client_requests.unwatch(client, message.ids)
            case Listen():
                self._client_requests.listen(client, message)
            case Query():
                self._client_requests.ask(client, message, self._polling.asks)
            case _:
                assert_never(message)

    def _unknown(self, peer: Peer) -> None:
        """Nobody said HELLO under this routing id, or a worker speaks a client's verbs."""
        state = self.state
        is_known = state.registry.by_peer(peer) or peer.routing_id in state.clients_by_routing_id
        if is_known:
            self._forbid(peer, "workers and clients have verbs of their own")
        else:
            state.reject("session.unknown")
            state.send(peer, Rehello("no session under this connection: say HELLO"))

    def _forbid(self, peer: Peer, why: str) -> None:
        self.state.reject("access.forbidden")
        self.state.send(peer, Refused(0, "access.forbidden", why))

    def _goodbye(self, peer: Peer) -> None:
        worker_state = self.state.registry.by_peer(peer)
        client = self.state.clients_by_routing_id.get(peer.routing_id)
        if worker_state is not None:
            self._worker_sessions.goodbye(worker_state)
        elif client is not None:
            self._client_requests.leave(client)
            self._polling.forget_peer(peer)

    # -------------------------------------------------------------------------- the clock

    def _sweep(self) -> None:
        state = self.state
        for worker_state in list(state.registry.worker_states.values()):
            if not worker_state.is_live and not worker_state.outstanding:
                continue
            if worker_state.dialect is Dialect.MESH:
                self._worker_sessions.sweep(worker_state)
            else:
                self._polling.sweep(worker_state)
        for client in list(state.clients.values()):
            if self._client_requests.is_silent(client):
                self._client_requests.leave(client)
        if self._orphans:
            self._give_up_orphans()
        is_young = state.now - self._started < state.policy.lease_s
        state.registry.note_absent(
            state.now - ABSENT_LEASES * state.policy.lease_s, is_young=is_young
        )
        if not state.task_table.queued:  # what lies in the lanes is cancelled, or past its deadline
            state.queue.lanes.clear()
        if state.now >= self._next_settle:
            self._next_settle = state.now + SETTLE_S
            self._settle_assignments()
            self._close_finished()
        if state.now >= self._next_prune:
            self._next_prune = math.inf  # until this step is answered: none is pruned twice
            self._streaming.forget_tails()
            self._prune()

    def _forgive(self, now: float) -> None:
        """The broker was stopped or starved: leases start anew, attempts get the time back."""
        gap_s = now - self._last_tick
        full_time_s = self._scheduler.full_time_s
        for worker_state in self.state.registry.worker_states.values():
            worker_state.last_heard = max(worker_state.last_heard, now)
            for task in worker_state.outstanding.values():
                task.until = min(task.until + gap_s, now + full_time_s)
        for client in self.state.clients.values():
            client.last_heard = now
        self._waiting_since += gap_s

    def _settle_assignments(self) -> None:
        state = self.state
        running = [task.assignment for task in state.task_table.tasks.values() if task.worker_id]
        below = min(running, default=state.next_assignment)
        if below > self._settled:
            self._settled = below
            state.record(AssignmentsSettled(below))

    def _close_finished(self) -> None:
        closed, self.state.closed = self.state.closed, []
        if closed:
            self.state.record(Closed(closed))

    def _prune(self) -> None:
        state = self.state
        excess = max(0, state.task_table.kept_finished - state.policy.retention_count)
        # A wall clock that jumps ahead while we run makes nothing older than it is.
        steady_at = self._started_at + state.now - self._started
        before_at = min(state.at, steady_at) - state.policy.retention_s

        def then(rows: list[tuple[object, ...]], error: str) -> None:
            batches = [(str(r[0]), r[1], r[2]) for r in rows if not error]
            if batches:
                state.record(Pruned(batches, state.at))  # type: ignore[arg-type]
            is_more = len(batches) == PRUNE_BATCHES  # the next step at the next sweep
            self._next_prune = state.now + (0.0 if is_more else PRUNE_S)

        state.load("prunable", (before_at, excess, PRUNE_BATCHES), then)

    # ------------------------------------------------------------------------- restarting

    def _restore(self, restored: Restored) -> None:
        state, task_table = self.state, self.state.task_table
        state.next_assignment = restored.next_assignment
        task_table.totals, task_table.workers = restored.totals, restored.workers
        task_table.kept_finished = restored.kept_finished
        task_table.take_keys(restored.keys)
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
        task_table, waiting = self.state.task_table, []
        for task_id, (n, history) in restored.troubled.items():
            task = task_table.open_task(task_id)
            if task is None:
                continue
            task.n, task.history = n, history
            if task_id not in restored.in_flight:
                waiting.append(task)
        for task_id, (n, worker_id) in restored.in_flight.items():
            task = task_table.open_task(task_id)
            if task is None:
                continue
            task_table.apply(Adopted(worker_id, [task_id], [n]))
            worker_state = self.state.registry.worker_states.get(worker_id)
            if worker_state is not None and worker_state.dialect is Dialect.POLLING:
                self._hold_for_polling(worker_state, task_id)
            else:
                self._orphans.setdefault(worker_id, []).append(task_id)
        for task in waiting:
            self._scheduler.resume(task)

    def _hold_for_polling(self, worker_state: WorkerState, task_id: str) -> None:
        """A polling worker is silent while it runs: its attempts get their whole time again."""
        task = self.state.task_table.tasks[task_id]
        task.remember().holders.add(worker_state.worker_id)
        worker_state.outstanding[task_id] = task
        worker_state.last_heard = self.state.now
        task.until = self.state.now + self.state.policy.task_timeout_s

    def _settle_orphans(self, worker_id: str, peer: Peer) -> None:
        """A worker is back after our start: its HELLO names all it holds, the rest waits again.

        Without this a broker that dies more often than a lease would never hand them out.
        """
        worker_state = self.state.registry.by_peer(peer)
        if (
            worker_state is not None
            and worker_state.worker_id == worker_id
            and worker_id in self._orphans
        ):
            self._give_up(worker_id, self._orphans.pop(worker_id), "its worker holds it no more")

    def _give_up_orphans(self) -> None:
        """What no worker came back with for one lease waits again, uncounted.

        How long a worker was waited for is noted, as the next start goes on with that: else a
        broker that dies more often than a lease would wait for ever for one that is dead.
        """
        waited_s, lease_s = self._waited_s(), self.state.policy.lease_s
        for worker_id in list(self._orphans):
            grace_s = max(MIN_GRACE_S, lease_s - self._waited.get(worker_id, 0.0))
            if waited_s >= grace_s:
                ids = self._orphans.pop(worker_id)
                self._give_up(worker_id, ids, "its worker did not come back")
        if self._orphans and self.state.now >= self._next_note:
            self._note_waits()

    def _waited_s(self) -> float:
        """Return how long workers were waited for since our start, as far as we ran.

        By the last tick: one after a standstill comes only behind the messages.
        """
        return self._last_tick - self._waiting_since

    def _note_waits(self) -> None:
        now_s = self._waited_s()
        waited = {each: self._waited.get(each, 0.0) + now_s for each in self._orphans}
        self.state.record(WorkersMissed(list(waited), list(waited.values())))
        self._noted = set(waited)
        self._next_note = self.state.now + WAIT_STEP_LEASES * self.state.policy.lease_s

    def _give_up(self, worker_id: str, ids: Sequence[str], why: str) -> None:
        worker_state = self.state.registry.worker_states.get(worker_id)
        tasks = [self.state.task_table.tasks.get(task_id) for task_id in ids]
        lost = [
            task
            for task in tasks
            if task is not None
            and task.worker_id == worker_id
            and (worker_state is None or task.id not in worker_state.outstanding)
        ]
        if lost:
            self._scheduler.requeue(worker_id, lost, why)
