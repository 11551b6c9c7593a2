"""What mesh workers say: they join, live, hand in results, give back, leave, and come back."""

from __future__ import annotations

from itertools import takewhile
from typing import Final

from msgspec import structs

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.records import RunningAttempt, TaskRecord
from d8mesh.core.broker.returns import (
    LEAVING,
    SERVICE_DOWN,
    UNSTARTED,
    Returns,
    running_and_waiting,
)
from d8mesh.core.broker.service_states import Flight
from d8mesh.core.broker.state import PLACED_TIME_S, BrokerState, SayOwed
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.broker.vanishing import has_vanished
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.core.protocol.task import Adopted, Recounted, TaskState
from d8mesh.core.protocol.tokens import Claim, worker_tag

#: Prefetched tasks are called back when their worker made no progress for this long.
RECALL_AFTER_S: Final = 0.5
#: How long the acknowledgement of a result that came alone waits for an assignment to go with:
#: many times the way of a quick task, too short for a worker to say anything again.
RECEIVED_WAIT_S: Final = 0.02
#: Who is cut off at once was last heard within a heartbeat of each other; one may have got lost.
CUT_HEARTBEATS: Final = 2
#: So often a task is spared when it was with who fell silent. A worker that dies under it and comes
#: back under another id, alone on its network, looks like a cut every time.
MAX_CUTS: Final = 10
#: Earlier starts of a worker that are told from a new one, if they prove to be alive still.
MAX_DISPLACED: Final = 8


class WorkerSessions:
    """Serves the mesh workers."""

    def __init__(
        self, state: BrokerState, outcomes: TaskOutcomes, returns: Returns, streaming: Streaming
    ) -> None:
        self._state = state
        self._streaming = streaming
        self._returns = returns
        self._outcomes = outcomes
        #: workers whose results came in with this wake-up, and how far their assignments were
        self._reporting: list[tuple[WorkerState, int]] = []
        #: when that was found out, and when somebody beyond this machine was last heard
        self._last_word = (-1.0, -1.0)

    # --------------------------------------------------------------------- joining

    def hello(self, message: m.WorkerHello, peer: Peer) -> None:
        """Let a worker join, or come back with what it still holds."""
        state = self._state
        old = state.registry.workers.get(message.worker_id)
        if old is not None and self._is_taken(old, message, peer):
            refusal = m.Refused(0, "worker.id_taken", f"{message.worker_id!r} is at work elsewhere")
            state.metrics.reject(refusal.code)
            self._state.send(peer, refusal)
            return
        if old is not None and old.boot_id == message.boot_id and old.dialect is Dialect.MESH:
            worker = old
            state.registry.leave(worker)
            state.registry.move(worker, peer)
            worker.is_live = True
            worker.unsure = {}
        else:
            if old is not None:
                why, held = "its worker was started again", self._held(message)
                self._returns.lose(old, why, is_counted=old.is_live, kept=held)
                named = set(message.held_ids)
                unsure = {i: n for i, n in old.unsure.items() if i not in named}
                self._returns.blame(old.worker_id, unsure, why)
            worker = WorkerState(message.worker_id, Dialect.MESH, peer, message.boot_id)
            if old is not None and old.boot_id:
                worker.displaced = (*old.displaced, old.boot_id)[-MAX_DISPLACED:]
        self._describe(worker, message)
        worker.has_asked, worker.asked = True, state.now
        state.registry.add(worker) if worker is not old else state.registry.rejoin(worker)
        state.registry.offer(worker, message.task_types, message.models)
        self._unblame(worker, message)
        dropped = self._take_over(worker, message)
        worker.work_seq = 0
        worker.owed.clear()  # it says again what it has not heard of
        # what is dropped for an outcome may go when that is on disk
        self._state.send(peer, state.welcome(peer, message.version, dropped), waits=True)
        worker.welcomed = state.now
        state.registry.refresh(worker)

    def _held(self, message: m.WorkerHello) -> set[str]:
        """Return the tasks of which the worker holds the current attempt."""
        tasks, held = self._state.task_table.tasks, set[str]()
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = tasks.get(task_id)
            if task is not None and task.attempt.token == token:
                held.add(task_id)
        return held

    def _is_taken(self, old: WorkerState, message: m.WorkerHello, peer: Peer) -> bool:
        """A live worker of that id beside this one: a clone, which needs another id.

        On one machine the newer is taken for a restart of the older, until that speaks again.
        """
        if not old.is_live or old.boot_id == message.boot_id or old.dialect is Dialect.POLLING:
            return False
        if message.boot_id in old.displaced:
            return True
        is_fresh = self._state.now - old.last_heard < self._state.policy.heartbeat_s * 1.5
        return is_fresh and old.peer.address != peer.address

    def _describe(self, worker: WorkerState, message: m.WorkerHello) -> None:
        worker.worker_type = message.worker_type
        worker.host = message.host
        worker.status_port = message.status_port
        worker.slots = max(1, message.slots)
        worker.window, worker.trouble = message.window, message.trouble
        self._heard(worker)

    def _unblame(self, worker: WorkerState, message: m.WorkerHello) -> None:
        """Count no loss of what the worker still holds: it was cut off and lives.

        It has held an attempt since that was handed out, so also when a later number was lost.
        """
        state = self._state
        back: dict[tuple[str, int], None] = {}
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = state.task_table.tasks.get(task_id)
            if task is None or task.history is None or not task.history.losses:
                continue
            claim = self._state.signer.check(token, task_id)
            if claim is not None:
                for worker_id, n in sorted(task.history.losses):
                    if worker_id == worker.worker_id and n >= claim.n:
                        back[task_id, n] = None
        if back:
            ids, ns = [task_id for task_id, _ in back], [n for _, n in back]
            self._state.record(Recounted(worker.worker_id, ids, ns, is_loss=False))

    def _take_over(self, worker: WorkerState, message: m.WorkerHello) -> list[str]:
        """Adopt the held attempts that still hold; queue the others of the worker again.

        Returns:
            The held ids whose tasks are finished or unknown, for the worker to drop. It drops
            all it holds under an id, so none of which another attempt still holds.
        """
        state, held = self._state, set(message.held_ids)
        lost = [task for task in worker.outstanding.values() if task.id not in held]
        self._returns.mislaid(worker, lost)
        until = state.now + state.policy.task_timeout_s
        dropped: list[str] = []
        kept: set[str] = set()
        adopted: dict[str, tuple[int, bytes]] = {}
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            claim = self._state.signer.check(token, task_id)
            task = state.task_table.open_task(task_id) if claim is not None else None
            is_revoked = claim is not None and state.members.is_revoked_tag(claim.worker_tag)
            if claim is None or task is None or is_revoked or _is_fenced_off(task, claim, token):
                dropped.append(task_id)
                continue
            kept.add(task_id)
            if _counts_already(task, claim):
                continue
            attempt = task.attempt
            if task_id in worker.outstanding:
                again = max(attempt.until, until)
                task.attempt = structs.replace(attempt, until=again, work_seq=0)
            elif task_id in adopted:
                continue  # two attempts of one task: either may finish it
            elif task.state is not TaskState.RUNNING or task.worker_id in ("", worker.worker_id):
                adopted[task_id] = (claim.n, token)
            elif not attempt.token and _is_current(task, claim, token):
                # handed out before our restart: now in another's outbox
                state.services.end(task_id, state.now)
                task.attempt = RunningAttempt(token)
        before = {task_id: state.task_table.tasks[task_id].attempt for task_id in adopted}
        if adopted:
            ns = [n for n, _ in adopted.values()]
            self._state.record(Adopted(worker.worker_id, list(adopted), ns))
        for task_id, (_, token) in adopted.items():
            task = state.task_table.tasks[task_id]
            state.services.end(task_id, state.now)
            task.attempt = RunningAttempt(token, until)
            worker.outstanding[task_id] = task
            if before[task_id].token == token and before[task_id].service:
                self._place(worker, task, before[task_id].service, before[task_id].model)
        return [task_id for task_id in dropped if task_id not in kept]

    def take_offer(self, worker: WorkerState, message: m.Services | m.Measured) -> None:
        """Take in the LLM services that a worker reaches, or how models there are now."""
        self._heard(worker)
        if isinstance(message, m.Services):
            self._take_services(worker, message)
        else:
            self._state.services.measured(worker, message, self._state.now)

    def _take_services(self, worker: WorkerState, message: m.Services) -> None:
        """All services of a worker are told, and what it still runs there."""
        state = self._state
        state.services.tell(worker, message, state.now)
        names = (name for each in message.services for name in (each.id, each.machine))
        worker.places = frozenset(name.lower() for name in names)
        state.registry.place(worker, message.types if message.services else ())
        for task_id, told_id, model in zip(
            message.held_ids, message.held_services, message.held_models, strict=True
        ):
            task, service = worker.outstanding.get(task_id), state.services.kept_id(worker, told_id)
            if task is not None and (task.attempt.service, task.attempt.model) != (service, model):
                self._place(worker, task, service, model)
        state.registry.refresh(worker)

    def _place(self, worker: WorkerState, task: TaskRecord, service: str, model: str) -> None:
        """An attempt is found to run at a service."""
        state = self._state
        state.services.end(task.id, state.now)
        until = max(task.attempt.until, state.now + PLACED_TIME_S)
        task.attempt = structs.replace(task.attempt, until=until, service=service, model=model)
        flight = Flight(worker, service, model, task.attempt.since or state.now)
        state.services.begin(task.id, flight)

    # ---------------------------------------------------------------------- living

    def heartbeat(self, worker: WorkerState, message: m.Heartbeat) -> None:
        """Renew the lease; assignments that the worker should hold and does not are lost."""
        self._heard(worker)
        worker.window, worker.trouble = message.window, message.trouble
        worker.running, worker.stuck = message.running, message.stuck
        if worker.outstanding:
            held = set(message.held_ids)
            # After a whole lease even the last assignment has arrived, or never will.
            is_quiet = self._state.now - worker.last_assignment > self._state.policy.lease_s
            lost = [
                task
                for task in worker.outstanding.values()
                if (is_quiet or task.attempt.work_seq <= message.work_seq) and task.id not in held
            ]
            self._returns.mislaid(worker, lost)
        if worker.types != set(message.task_types) or worker.models != set(message.models):
            self._state.registry.offer(worker, message.task_types, message.models)
        self._say_received(worker, [])
        self._state.tell(worker, m.Beat(self._state.epoch))
        self._state.registry.refresh(worker)

    def results(self, worker: WorkerState, message: m.Results) -> None:
        """Record what the worker has finished; acknowledged once it is on disk."""
        ids, tokens, kinds, payloads = message.ids, message.tokens, message.kinds, message.payloads
        self._heard(worker)
        worker.window = message.window
        find = self._state.task_table.tasks.get
        tasks: list[TaskRecord] = []
        ns: list[int] = []
        others: list[int] = []
        done: set[str] = set()
        is_twice = len(ids) > 1 and len(set(ids)) != len(ids)
        for index, task_id in enumerate(ids):
            task = find(task_id)
            if (
                task is None
                or task.attempt.token != tokens[index]
                or kinds[index] != m.SUCCEEDED
                or task_id in done
            ):
                others.append(index)
            else:
                tasks.append(task)
                ns.append(task.n)
                if is_twice:  # what a message says twice counts once
                    done.add(task_id)
        if others:  # seldom: else the message's own columns will do
            good = sorted(set(range(len(ids))).difference(others))
            ids, payloads = [ids[index] for index in good], [payloads[index] for index in good]
        if ids:
            self._outcomes.complete(worker.worker_id, ids, ns, payloads, tasks)
            worker.failures_in_a_row = 0
        for index in others:
            self._unusual_result(worker, message, index)
        if not worker.results:
            self._reporting.append((worker, worker.work_seq))
        worker.results.append(message.seq)
        self._state.registry.refresh(worker)

    def acknowledge(self) -> None:
        """Acknowledge the results of this wake-up, after what it has handed out.

        A worker that holds one task at a time and was just given its next will soon be
        given another: the acknowledgement goes with that one, or with its next `Beat`. Where
        tasks come one by one the next one is a moment away: it is waited for, `RECEIVED_WAIT_S`.
        """
        reporting, self._reporting = self._reporting, []
        for worker, work_seq in reporting:
            results, worker.results = worker.results, []
            if worker.window == 1 and worker.is_live and worker.work_seq != work_seq:
                worker.owed += results
            elif len(reporting) == len(results) == 1 and worker.is_live and not worker.outstanding:
                worker.owed += results
                worker.owed_since = self._state.now
                if not worker.is_owed_timed:
                    self._owe(worker, RECEIVED_WAIT_S)
            else:
                self._say_received(worker, results)

    def say_owed(self, worker_id: str) -> None:
        """Acknowledge what no assignment came to go with."""
        worker = self._state.registry.workers.get(worker_id)
        if worker is None:
            return
        worker.is_owed_timed = False
        if worker.owed and worker.is_live:
            left_s = worker.owed_since + RECEIVED_WAIT_S - self._state.now
            if left_s > 0.0:  # an assignment went with what was owed then
                self._owe(worker, left_s)
            else:
                self._say_received(worker, [])

    def _owe(self, worker: WorkerState, pause_s: float) -> None:
        worker.is_owed_timed = True
        self._state.after(pause_s, SayOwed(worker.worker_id))

    def _say_received(self, worker: WorkerState, results: list[int]) -> None:
        owed, worker.owed = worker.owed, []
        for seq in (*owed, *results):
            self._state.send(worker.peer, m.Received(seq), waits=True)

    def _unusual_result(self, worker: WorkerState, message: m.Results, index: int) -> None:
        """A failure, a repeat, or a late result of an earlier attempt."""
        state = self._state
        task_id, token = message.ids[index], message.tokens[index]
        kind, payload = message.kinds[index], message.payloads[index]
        name = worker.worker_id
        claim = self._state.signer.check(token, task_id)
        if claim is None:
            state.metrics.reject("token.invalid")
            return
        if state.members.is_revoked_tag(claim.worker_tag):
            state.metrics.reject("access.revoked")
            return
        found = state.task_table.find(task_id)
        if found is None or state.task_table.state_of(task_id) is None:
            state.metrics.duplicates += 1
            worker.outstanding.pop(task_id, None)
            return
        task = state.task_table.tasks.get(task_id)
        if task is not None and task.attempt.token == token and task.state is TaskState.RUNNING:
            is_final, is_placed = kind == m.REFUSED, bool(task.attempt.service)
            self._returns.attempt_failed(name, task, claim.n, payload, is_final=is_final)
            if not is_final and not is_placed:  # what it refuses is the task's fault, not its own
                worker.failures_in_a_row += 1
        elif kind == m.SUCCEEDED and not found[0].spec.is_fenced:
            self._outcomes.complete(name, [task_id], [claim.n], [payload])
        else:
            state.metrics.reject("result.stale")

    def release(self, worker: WorkerState, message: m.Release) -> None:
        """Queue again what the worker gives back; see `core.broker.returns` for what it costs."""
        self._heard(worker)
        worker.window = message.window
        given = [
            task
            for task_id, token in zip(message.ids, message.tokens, strict=True)
            if (task := worker.outstanding.get(task_id)) is not None and task.attempt.token == token
        ]
        if given:
            self._given_back(worker, given, message.reason)
        for _ in range(len(message.ids) - len(given)):
            self._state.metrics.reject("release.stale")
        self._say_received(worker, [])
        self._state.registry.refresh(worker)

    def _given_back(self, worker: WorkerState, given: list[TaskRecord], reason: str) -> None:
        if reason:
            why = f"worker {worker.worker_id!r} could not run it: {reason}"
            self._returns.take(worker.worker_id, given, why, SERVICE_DOWN)
        elif worker.recalled:  # we asked for it
            self._returns.requeue(worker.worker_id, given, "called back for another worker")
            worker.recalled = max(0, worker.recalled - len(given))
        else:
            why = f"worker {worker.worker_id!r} gave it back unstarted"
            kind = UNSTARTED if worker.window else LEAVING
            self._returns.take(worker.worker_id, given, why, kind)

    def chunks(self, worker: WorkerState, message: m.Chunks) -> None:
        """Pass partial output on."""
        self._heard(worker)
        self._streaming.take(message)

    # --------------------------------------------------------------------- leaving

    def goodbye(self, worker: WorkerState) -> None:
        """A drained worker leaves; what it may still hold waits again, uncounted."""
        held = list(worker.outstanding.values())
        self._returns.take(worker.worker_id, held, f"its worker {worker.worker_id!r} left", LEAVING)
        self._state.part_with(worker)

    def sweep(self, worker: WorkerState) -> None:
        """Look at one mesh worker: lease, overdue attempts, prefetched ones nobody starts."""
        state = self._state
        is_gone = has_vanished(worker, state.now)
        if is_gone or state.now - worker.last_heard > state.policy.lease_s:
            blamed, _ = running_and_waiting(worker, list(worker.outstanding.values()))
            if (is_gone or self._is_cut_off(worker)) and all(map(_is_spared, blamed)):
                why = "its connection has ended" if is_gone else "nobody was heard"
                self._returns.lose(worker, why, is_cut=True)
                worker.unsure = {task.id: task.n for task in blamed}
            else:
                self._returns.lose(worker, "worker lost", is_counted=True)
            return
        if overdue := self._overdue(worker):
            self._returns.requeue(worker.worker_id, overdue, "timed out", is_counted=True)
        worker.note_asking(state.now)
        excess = len(worker.outstanding) - worker.placed - worker.slots
        if excess > 0 and self._somebody_idles(worker):
            worker.recalled = excess
            self._state.tell(worker, m.Recall(excess))
        else:
            worker.recalled = 0

    def _overdue(self, worker: WorkerState) -> list[TaskRecord]:
        """Return what a mesh worker kept far beyond its time without a word about it.

        Assignments are looked at in their order, so a later one with a shorter time may wait
        for those before it; its worker has a timer of its own anyway. Those at services, which
        have much more time, hold up no others.
        """
        tasks = worker.outstanding.values()
        if worker.placed:
            return list(filter(self._is_overdue, tasks))
        return list(takewhile(self._is_overdue, tasks))

    def _is_overdue(self, task: TaskRecord) -> bool:
        return task.attempt.until <= self._state.now

    def _is_cut_off(self, worker: WorkerState) -> bool:
        """Nobody beyond this machine was heard after it: our own network may be what is gone.

        A worker that comes back and had died is blamed then. What is on this machine is no
        witness, and no such cut makes it silent.
        """
        state = self._state
        if is_loopback(worker.peer.address):
            return False
        if self._last_word[0] != state.now:  # once for all that fall silent at once
            workers = state.registry.workers.values()
            everybody = [(w.peer, w.last_heard) for w in workers if w.dialect is Dialect.MESH]
            everybody += [(client.peer, client.last_heard) for client in state.clients.values()]
            outside = [heard for peer, heard in everybody if not is_loopback(peer.address)]
            self._last_word = (state.now, max(outside))
        return self._last_word[1] <= worker.last_heard + CUT_HEARTBEATS * state.policy.heartbeat_s

    def _somebody_idles(self, worker: WorkerState) -> bool:
        """Another free worker with nothing to do, while this one is at the same tasks."""
        newest = next(t for t in reversed(worker.outstanding.values()) if not t.attempt.service)
        if newest.attempt.until - self._state.now > self._state.policy.full_time_s - RECALL_AFTER_S:
            return False  # handed out just now
        line = self._state.registry.free.get(newest.batch.spec.type, {})
        return any(other is not worker and not other.outstanding for other in line.values())

    def _heard(self, worker: WorkerState) -> None:
        worker.last_heard, worker.last_heard_at = self._state.now, self._state.at
        worker.is_mute = False


def _is_spared(task: TaskRecord) -> bool:
    """One more time a silence with this task is taken for a cut: it may be what kills workers."""
    return task.history is None or task.history.cuts < MAX_CUTS


def _counts_already(task: TaskRecord, claim: Claim) -> bool:
    """The failure of this attempt was told before, whoever has it in an outbox by now."""
    told = () if task.history is None else task.history.failures
    return any(n == claim.n and worker_tag(name) == claim.worker_tag for name, n in told)


def _is_fenced_off(task: TaskRecord, claim: Claim, token: bytes) -> bool:
    """An attempt of a fenced task that ended here, or after which another was handed out."""
    if not task.batch.spec.is_fenced or claim.n > task.n:  # larger: its assignment was not stored
        return False
    return not _is_current(task, claim, token)


def _is_current(task: TaskRecord, claim: Claim, token: bytes) -> bool:
    """The attempt that runs; after a restart its token is not known, but what it says is."""
    if task.state is not TaskState.RUNNING or task.attempt.token:
        return task.attempt.token == token
    return (claim.n, claim.worker_tag) == (task.n, worker_tag(task.worker_id))
