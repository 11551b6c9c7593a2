"""The broker's brain: messages in, effects out; no sockets, clock or randomness.

`Dispatcher.receive` takes one message, `tick` hands out what waits and does what is due;
both return effects. The parts, each with one concern: `admission` (submits), `scheduler`
(assignment), `returns` (retries), `outcomes`, `worker_sessions` (mesh workers),
`polling` (REST workers), `client_requests` (clients), `joins` (who may come in), `restart`. They
share the `BrokerState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop
from typing import Final, assert_never

from msgspec import structs

from d8mesh.core.broker import store, vanishing
from d8mesh.core.broker.admission import Admission
from d8mesh.core.broker.client_requests import ClientRequests
from d8mesh.core.broker.effects import Effect, KeepMembers, Loaded, Peer
from d8mesh.core.broker.erasures import Erasures
from d8mesh.core.broker.joins import Joins
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.members_view import Knock
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.patience import Patience
from d8mesh.core.broker.polling import Polling
from d8mesh.core.broker.restart import Restart
from d8mesh.core.broker.returns import MISLAID, Returns
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.service_scheduler import ServiceScheduler
from d8mesh.core.broker.state import (
    ATTEMPT_GRACE_S,
    PLACED_TIME_S,
    BrokerState,
    CatchUp,
    ClientState,
    Continuation,
    EraseDue,
    PassDeadline,
    Policy,
    Reply,
    Retry,
    SayOwed,
    ShowDetails,
    ShowPage,
    ShowTask,
    TellOutcomes,
    ThankForReport,
    Timer,
)
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.broker.worker_sessions import WorkerSessions
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import AssignmentsSettled, Closed, Pruned
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import D8Error, IllegalTransitionError

#: How often leases, silences and retention are looked at.
SWEEP_S: Final = 0.5
#: A gap between ticks beyond this means that the broker itself stood still: nobody is blamed.
STANDSTILL_S: Final = 2.0
#: A worker heard so many leases ago may come back with its models: a lease until it is lost.
ABSENT_LEASES: Final = 2
#: How often finished tasks are pruned.
PRUNE_S: Final = 20.0
#: How often settled assignments and batches are forgotten: bounds what a restart looks through.
SETTLE_S: Final = 3.0
#: Finished batches that are noted as closed at once, or all when assignments are settled: a single
#: task's outcome shall not change two more pages of the journal. A restart sees it by itself.
CLOSED_AT_ONCE: Final = 256
#: Clocks beyond this many, and twice as many as were of use the last time, are looked through.
FEW_TIMERS: Final = 10_000
#: Batches pruned in one step, so that a step does not disturb dispatch.
PRUNE_BATCHES: Final = 200


class Dispatcher:
    """One orchestrator's brain.

    Args:
        policy: the numbers the rules use.
        restored: what the store holds.
        draw: returns a random number in [0, 1).
        members: the keys that are known; none, and all may join, if it is left out.
    """

    def __init__(
        self,
        policy: Policy,
        restored: store.Restored,
        draw: Callable[[], float],
        *,
        members: Members | None = None,
        now: float = 0.0,
        at: float = 0.0,
    ) -> None:
        signer = TokenSigner(restored.secret, restored.epoch)
        state = self.state = BrokerState(
            policy, restored.epoch, signer, draw, now=now, at=at, started_at=at
        )
        state.members = members or state.members
        self._streaming = streaming = Streaming(state)
        self._outcomes = outcomes = TaskOutcomes(state, streaming)
        self._patience = patience = Patience(state, outcomes)
        self._returns = returns = Returns(state, outcomes, patience)
        self._scheduler = scheduler = Scheduler(state, outcomes)
        self._service_scheduler = ServiceScheduler(state, scheduler, outcomes)
        self._worker_sessions = WorkerSessions(state, outcomes, returns, streaming)
        self._polling = Polling(state, scheduler, outcomes, returns)
        self._admission = admission = Admission(state, scheduler)
        self._client_requests = clients = ClientRequests(state, outcomes, admission, streaming)
        self._joins = Joins(state, returns, clients, self._polling)
        self._next_sweep = self._last_tick = self._started = now
        self._started_at = at
        self._next_prune = now + PRUNE_S
        self._next_settle = now + SETTLE_S
        self._settled = self._useful_timers = 0
        self._restart = Restart(state, restored, scheduler, returns, self._polling)
        self._erasures = Erasures(state, streaming, restored.erasures)

    # ----------------------------------------------------------------- the loop's calls

    def receive(self, message: m.ToBroker, peer: Peer, now: float) -> list[Effect]:
        """Take in one message and return what is to be done."""
        state = self.state
        state.at += now - state.now
        state.now = now
        worker = state.registry.by_peer(peer)
        client = state.clients_by_routing_id.get(peer.routing_id)
        if client is not None:
            client.last_heard = now
        match message:
            case m.Results() if worker:  # the way of every task
                self._worker_sessions.results(worker, message)
            case m.Submit() if client:
                self._admission.submit(client, message)
            case m.Heartbeat() if worker:
                self._worker_sessions.heartbeat(worker, message)
            case m.Release() if worker:
                self._worker_sessions.release(worker, message)
            case m.Chunks() if worker:
                self._worker_sessions.chunks(worker, message)
            case m.Measured() | m.Services() | m.Described() if worker:
                self._take_offer(worker, message)
            case m.Watch() if client:
                self._client_requests.watch(client, message)
            case m.Unwatch() if client:
                self._client_requests.unwatch(client, message.ids)
            case m.Listen() if client:
                self._client_requests.listen(client, message)
            case m.Query() | m.Delivered() | m.ChangeMembers() if client:
                self._serve(client, message)
            case _:
                self._come_or_go(message, peer, worker, client)
        return self.state.take()

    def loaded(self, answer: Loaded) -> list[Effect]:
        """Take in an answer of the store."""
        state = self.state
        then, session = state.loads.pop(answer.number, (None, ""))
        client = state.clients.get(session)
        if client is not None:
            client.loads = max(0, client.loads - 1)  # it may have left and be back
        if then is not None:
            self._answered(then, answer.answer)
        return self.state.take()

    def undelivered(self, peer: Peer, message: m.Message) -> list[Effect]:
        """A message could not be sent: its peer is gone, or reads too slowly.

        Assignments wait for another worker, uncounted; this one gets none until it speaks again.
        What a client missed it asks for again.
        """
        self.state.metrics.undelivered += 1
        worker = self.state.registry.by_peer(peer)
        if isinstance(message, m.Stream | m.Streams):
            for stream in message.streams if isinstance(message, m.Streams) else (message,):
                self._streaming.undelivered(peer, stream)
        elif worker is not None and isinstance(message, m.Beat):
            vanishing.note_undelivered(worker, self.state.now)
        elif worker is not None and isinstance(message, m.Work):
            worker.window = 0  # every word of a mesh worker says its window anew
            worker.is_mute = True
            self.state.registry.refresh(worker)
            ids = [task_id for group in message.groups for task_id in group.ids]
            tasks = [worker.outstanding[i] for i in ids if i in worker.outstanding]
            if tasks:
                why = f"it could not be sent to worker {worker.worker_id!r}"
                self._returns.take(worker.worker_id, tasks, why, MISLAID)
        return self.state.take()

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
        while state.timers and state.timers[0][0] <= now:
            self._go_on(heappop(state.timers)[2])
        self._scheduler.run_alarms()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep()
        if not self._restart.is_noted:
            self._restart.note(now)
        self._service_scheduler.assign()
        self._scheduler.assign()
        self._polling.settle()
        self._streaming.send_due()
        self._erasures.settle()
        self._outcomes.tell_all()
        self._worker_sessions.acknowledge()
        if len(state.closed) >= CLOSED_AT_ONCE:
            self._close_finished()
        return self.state.take()

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next, if nothing comes in before."""
        timers = self.state.timers
        timer = timers[0][0] if timers else math.inf
        alarm, poll = self._scheduler.next_alarm(), self._polling.next_deadline()
        return min(timer, alarm, poll, self._next_sweep)

    def committed(self, took_s: float) -> None:
        """Count a commit that took so long."""
        self.state.metrics.commit_s.fresh.append((took_s, 1))

    def set_unconfirmed(self, since: float) -> None:
        """Take in that facts of wake-ups from then on are not durable; `math.inf`: all are."""
        self.state.unconfirmed_since = since

    def set_disk_low(self, is_low: bool) -> None:
        """Take in whether the disk is nearly full: no submit is accepted while it is."""
        self.state.is_disk_low = is_low

    def reject(self, code: str) -> None:
        """Count a refusal that came before any frame."""
        self.state.metrics.reject(code)

    def malformed(self, peer: Peer, code: str, now: float) -> list[Effect]:
        """Take in that a peer sent a frame that is no message."""
        self._pass_to(now)
        self._joins.malformed(peer, code)
        return self.state.take()

    def knocked(self, knock: Knock, now: float) -> list[Effect]:
        """Take in what the gate has decided about a connection."""
        self._pass_to(now)
        self._joins.knocked(knock)
        return self.state.take()

    def announced(self, key: bytes, name: str) -> None:
        """Take in the name that a node announces for its key."""
        self.state.members.announce(key, name)

    def kept(self, effect: KeepMembers, trouble: str = "") -> list[Effect]:
        """Take in that the file of members is written; `trouble`: why it is not."""
        self._joins.kept(effect, trouble)
        return self.state.take()

    def drain(self) -> list[Effect]:
        """Take nothing new and hand nothing out; say goodbye to all."""
        state = self.state
        state.is_draining = True
        for worker in list(state.registry.workers.values()):
            if worker.dialect is Dialect.MESH and worker.is_live:
                self.state.send(worker.peer, m.Goodbye("the orchestrator is shutting down"))
        for client in state.clients.values():
            self.state.send(client.peer, m.Goodbye("the orchestrator is shutting down"))
        return self.state.take()

    def _pass_to(self, now: float) -> None:
        state = self.state
        state.at += now - state.now
        state.now = now

    def _serve(self, client: ClientState, message: m.ClientQuestion | m.Delivered) -> None:
        if isinstance(message, m.Delivered):
            self._erasures.deliver(client, message)
        else:
            self._ask(client.peer, message)

    def _take_offer(
        self, worker: WorkerState, message: m.Services | m.Measured | m.Described
    ) -> None:
        if isinstance(message, m.Described):
            self.state.services.described(worker, message)
        else:
            self._worker_sessions.take_offer(worker, message)

    def _come_or_go(
        self,
        message: m.ToBroker,
        peer: Peer,
        worker: WorkerState | None,
        client: ClientState | None,
    ) -> None:
        """Take in what opens or ends a session; anything else is not said by who may say it."""
        match message:
            case m.WorkerHello() | m.ClientHello():
                if self._joins.admits(message, peer, worker, client):
                    self._open(message, peer)
            case m.Goodbye() if worker:
                self._worker_sessions.goodbye(worker)
            case m.Goodbye() if client:
                self._client_requests.leave(client)
                self._polling.forget_peer(peer)
            case m.Goodbye():
                pass  # nobody leaves
            case _ if worker or client:
                self._joins.forbid(peer, "workers and clients have verbs of their own")
            case _:
                self._joins.no_session(peer)

    def _open(self, message: m.WorkerHello | m.ClientHello, peer: Peer) -> None:
        if isinstance(message, m.ClientHello):
            self._client_requests.hello(message, peer)
            return
        self._worker_sessions.hello(message, peer)
        joined = self.state.registry.by_peer(peer)
        if joined is not None and joined.worker_id == message.worker_id:
            self._restart.settle(message.worker_id)

    # ---------------------------------------------------------------------- the questions

    def _ask(self, peer: Peer, message: m.ClientQuestion) -> None:
        try:
            if isinstance(message, m.ChangeMembers):
                self._joins.change(peer, message)
            elif message.what == "members":
                self._joins.listing(peer, message.request)
            elif message.what.startswith("poll."):
                self._polling.ask(peer, message)
            else:
                self._client_requests.ask(peer, message)
        except Exception as error:
            where = "members" if isinstance(message, m.ChangeMembers) else message.what
            code = self._refuse(peer, message.request, error, where)
            self.state.metrics.reject(code)

    def _answered(self, then: Continuation, answer: store.StoreAnswer) -> None:
        match then:
            case store.PayloadsOf():
                self._scheduler.page_in(then, answer)
            case store.PrunableBatches():
                self._forget(answer)
            case TellOutcomes():
                self._client_requests.tell_outcomes(then, answer)
            case _:
                self._reply(then, answer)

    def _reply(self, then: Reply, answer: store.StoreAnswer) -> None:
        try:
            if isinstance(answer, store.Unreadable):
                raise D8Error(answer.why)
            match then:
                case ThankForReport():
                    self._polling.thank(then, answer)
                case ShowTask():
                    self._client_requests.show_task(then, answer)
                case ShowDetails():
                    self._client_requests.show_details(then, answer)
                case ShowPage():
                    self._client_requests.show_page(then, answer)
                case _:
                    self._client_requests.replay_source(then, answer)
        except Exception as error:
            self._refuse(then.peer, then.request, error, type(then).__name__)

    def _refuse(self, peer: Peer, request: int, error: Exception, where: str) -> str:
        """Tell who asked why there is no answer; a fault of ours is logged, and only named."""
        if not isinstance(error, D8Error) or isinstance(error, IllegalTransitionError):
            self.state.tell_fault(where, error)
            error = D8Error("the orchestrator failed to answer; its log says why")
        self.state.refuse(peer, request, error)
        return error.code

    # -------------------------------------------------------------------------- the clock

    def _sweep(self) -> None:
        state = self.state
        for worker in list(state.registry.workers.values()):
            if not worker.is_live and not worker.outstanding:
                continue
            if worker.dialect is Dialect.MESH:
                self._worker_sessions.sweep(worker)
            else:
                self._polling.sweep(worker)
        for client in list(state.clients.values()):
            if self._client_requests.is_silent(client):
                self._client_requests.leave(client)
        self._joins.sweep()
        self._restart.give_up(self._last_tick)
        vanishing.probe(state)
        self._patience.look()
        self._service_scheduler.look_again()
        state.metrics.fold()
        is_young = state.now - self._started < state.policy.lease_s
        heard_after = state.now - ABSENT_LEASES * state.policy.lease_s
        state.registry.note_absent(heard_after, is_young=is_young)
        state.services.forget_gone(heard_after, state.now)
        if not state.task_table.queued:  # what lies in the lanes is cancelled, or past its deadline
            state.queue.lanes.clear()
        if len(state.timers) > max(FEW_TIMERS, 2 * self._useful_timers):
            state.timers = [each for each in state.timers if self._is_of_use(each[2])]
            heapify(state.timers)
            self._useful_timers = len(state.timers)
        if state.now >= self._next_settle:
            self._next_settle = state.now + SETTLE_S
            self._settle_assignments()
            self._close_finished()
        if state.now >= self._next_prune:
            self._next_prune = math.inf  # until this step is answered: none is pruned twice
            self._streaming.forget_tails()
            self._prune()

    def _go_on(self, timer: Timer) -> None:
        match timer:
            case Retry(task_id):
                self._returns.retry(task_id)
            case PassDeadline(session, first):
                self._scheduler.pass_deadline(session, first)
            case SayOwed(worker_id):
                self._worker_sessions.say_owed(worker_id)
            case CatchUp():
                self._streaming.catch_up()
            case EraseDue(task_id):
                self._erasures.come_due(task_id)
            case _:
                assert_never(timer)

    def _is_of_use(self, timer: Timer) -> bool:
        """Return whether what a clock is for is still there: a deadline may be years away."""
        table = self.state.task_table
        if isinstance(timer, PassDeadline):
            return table.batch_at(timer.session, timer.first) is not None
        if isinstance(timer, EraseDue):
            return timer.task_id in table.erasures
        return not isinstance(timer, Retry) or timer.task_id in table.tasks

    def _forgive(self, now: float) -> None:
        """The broker was stopped or starved: leases start anew, attempts get the time back."""
        gap_s, full_s = now - self._last_tick, self.state.policy.full_time_s
        for worker in self.state.registry.workers.values():
            worker.last_heard = max(worker.last_heard, now)
            for task in worker.outstanding.values():
                most_s = PLACED_TIME_S + ATTEMPT_GRACE_S if task.attempt.service else full_s
                until = min(task.attempt.until + gap_s, now + most_s)
                task.attempt = structs.replace(task.attempt, until=until)
        for client in self.state.clients.values():
            client.last_heard = now
        self._restart.forgive(gap_s)

    def _settle_assignments(self) -> None:
        state = self.state
        running = [task.assignment for task in state.task_table.tasks.values() if task.worker_id]
        below = min(running, default=state.next_assignment)
        if below > self._settled:
            self.state.record(AssignmentsSettled(below))
            self._settled = below

    def _close_finished(self) -> None:
        if self.state.closed:
            self.state.record(Closed(self.state.closed))
            self.state.closed = []

    def _prune(self) -> None:
        state = self.state
        excess = max(0, state.task_table.kept_finished - state.policy.retention_count)
        # A wall clock that jumps ahead while we run makes nothing older than it is.
        steady_at = self._started_at + state.now - self._started
        before_at = min(state.at, steady_at) - state.policy.retention_s
        question = store.PrunableBatches(before_at, excess, PRUNE_BATCHES)
        self.state.ask(question, question)

    def _forget(self, answer: store.StoreAnswer) -> None:
        """Forget what the store names as prunable."""
        state = self.state
        batches = answer.batches if isinstance(answer, store.OldBatches) else []
        if batches:
            self.state.record(Pruned(batches, state.at))
        is_more = len(batches) == PRUNE_BATCHES  # the next step at the next sweep
        self._next_prune = state.now + (0.0 if is_more else PRUNE_S)
