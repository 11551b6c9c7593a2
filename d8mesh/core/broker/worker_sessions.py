"""What mesh workers say: they join, live, hand in results, give back, leave."""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.records import TaskRecord
from d8mesh.core.broker.returns import LEAVING, MISLAID, SERVICE_DOWN, UNSTARTED, Returns
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.core.protocol.messages import (
    REFUSED,
    SUCCEEDED,
    VERSIONS,
    Beat,
    Chunks,
    Heartbeat,
    Recall,
    Received,
    Refused,
    Release,
    Results,
    Welcome,
    WorkerHello,
)
from d8mesh.core.protocol.task import Adopted, Recounted, TaskState
from d8mesh.core.protocol.tokens import Claim, worker_tag

#: Prefetched tasks are called back when their worker made no progress for this long.
RECALL_AFTER_S: Final = 0.5
#: How long the acknowledgement of a result that came alone waits for a hand-out to go with:
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
    """Serves the mesh workers of a pool."""

    def __init__(
        self,
        broker: BrokerState,
        scheduler: Scheduler,
        task_outcomes: TaskOutcomes,
        returns: Returns,
        streaming: Streaming,
    ) -> None:
        self._state = broker
        self._streaming = streaming
        self._returns = returns
        self._scheduler = scheduler
        self._outcomes = task_outcomes
        #: workers whose results came in with this wake-up, and how far their hand-outs were
        self._reporting: list[tuple[WorkerState, int]] = []
        #: when that was found out, and when somebody beyond this machine was last heard
        self._last_word = (-1.0, -1.0)

    # --------------------------------------------------------------------- joining

    def hello(self, message: WorkerHello, peer: Peer) -> None:
        """Give the worker a worker, or its old one back, with what it still holds."""
        broker = self._state
        refusal = refuse_hello(message.version, message.mesh, broker)
        old = broker.registry.worker_states.get(message.worker_id)
        if refusal is None and old is not None and self._is_taken(old, message, peer):
            refusal = Refused(0, "worker.id_taken", f"{message.worker_id!r} is at work elsewhere")
        if refusal is not None:
            broker.reject(refusal.code)
            broker.send(peer, refusal)
            return
        if old is not None and old.boot_id == message.boot_id and old.dialect is Dialect.MESH:
            worker_state = old
            broker.registry.leave(worker_state)
            broker.registry.move(worker_state, peer)
            worker_state.is_live = True
            worker_state.unsure = {}
        else:
            if old is not None:
                self._leave_held(old, message)
                why = "its worker was started again"
                self.lose(old, why, is_counted=bool(old.is_live))
                held = set(message.held_ids)
                unsure = {i: n for i, n in old.unsure.items() if i not in held}
                self._scheduler.blame(old.worker_id, unsure, why)
            worker_state = WorkerState(message.worker_id, Dialect.MESH, peer, message.boot_id)
            if old is not None and old.boot_id:
                worker_state.displaced = (*old.displaced, old.boot_id)[-MAX_DISPLACED:]
        self._describe(worker_state, message)
        worker_state.has_asked, worker_state.asked = True, broker.now
        broker.registry.add(worker_state) if worker_state is not old else broker.registry.rejoin(
            worker_state
        )
        broker.registry.offer(worker_state, message.task_types, message.models)
        self._unblame(worker_state, message)
        dropped = self._take_over(worker_state, message)
        worker_state.work_seq = 0
        worker_state.owed.clear()  # it says again what it has not heard of
        policy = broker.policy
        broker.send(
            peer,
            Welcome(
                message.version,
                broker.epoch,
                policy.broker_id,
                policy.heartbeat_s,
                policy.lease_s,
                dropped,
            ),
            waits=True,  # what is dropped for an outcome may go when that is on disk
        )
        worker_state.welcomed = broker.now
        broker.registry.refresh(worker_state)

    def _leave_held(self, old: WorkerState, message: WorkerHello) -> None:
        """Take out of a worker what its successor holds the result of: that is not lost."""
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = self._state.task_table.tasks.get(task_id)
            if task is not None and task.token == token:
                old.outstanding.pop(task_id, None)

    def _is_taken(self, old: WorkerState, message: WorkerHello, peer: Peer) -> bool:
        """A live worker of that id beside this one: a clone, which needs another id.

        On one machine the newer is taken for a restart of the older, until that speaks again.
        """
        if not old.is_live or old.boot_id == message.boot_id or old.dialect is Dialect.POLLING:
            return False
        if message.boot_id in old.displaced:
            return True
        is_fresh = self._state.now - old.last_heard < self._state.policy.heartbeat_s * 1.5
        return is_fresh and old.peer.address != peer.address

    def _describe(self, worker_state: WorkerState, message: WorkerHello) -> None:
        worker_state.worker_type = message.worker_type
        worker_state.host = message.host
        worker_state.status_port = message.status_port
        worker_state.slots = max(1, message.slots)
        worker_state.window, worker_state.trouble = message.window, message.trouble
        self._heard(worker_state)

    def _unblame(self, worker_state: WorkerState, message: WorkerHello) -> None:
        """Count no loss of what the worker still holds: it was cut off and lives.

        It has held an attempt since that was handed out, so also when a later number was lost.
        """
        broker = self._state
        back: dict[tuple[str, int], None] = {}
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = broker.task_table.tasks.get(task_id)
            if task is None or task.history is None or not task.history.losses:
                continue
            claim = broker.signer.check(token, task_id)
            if claim is not None:
                losses = sorted(task.history.losses)
                own = [
                    n
                    for worker_id, n in losses
                    if worker_id == worker_state.worker_id and n >= claim.n
                ]
                back.update(((task_id, n), None) for n in own)
        if back:
            ids, ns = [task_id for task_id, _ in back], [n for _, n in back]
            broker.record(Recounted(worker_state.worker_id, ids, ns, is_loss=False))

    def _take_over(self, worker_state: WorkerState, message: WorkerHello) -> list[str]:
        """Adopt the held attempts that still hold; queue the others of the worker again.

        Returns:
            The held ids whose tasks are finished or unknown, for the worker to drop. It drops
            all it holds under an id, so none of which another attempt still holds.
        """
        broker, held = self._state, set(message.held_ids)
        lost = [task for task in worker_state.outstanding.values() if task.id not in held]
        self._mislaid(worker_state, lost)
        until = broker.now + broker.policy.task_timeout_s
        dropped: list[str] = []
        kept: set[str] = set()
        ids: list[str] = []
        ns: list[int] = []
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            claim = broker.signer.check(token, task_id)
            task = broker.task_table.open_task(task_id) if claim is not None else None
            if claim is None or task is None or _is_fenced_off(task, claim, token):
                dropped.append(task_id)
                continue
            kept.add(task_id)
            if _counts_already(task, claim):
                continue
            if task_id in worker_state.outstanding:
                task.work_seq, task.until = 0, max(task.until, until)
            elif task_id in ids:
                continue  # two attempts of one task: either may finish it
            elif task.state is not TaskState.RUNNING or task.worker_id in (
                "",
                worker_state.worker_id,
            ):
                ids.append(task_id)
                ns.append(claim.n)
                task.token = token
            elif not task.token and _is_current(task, claim, token):
                task.token = token  # handed out before our restart: now in another's outbox
        if ids:
            broker.record(Adopted(worker_state.worker_id, ids, ns))
        for task_id in ids:
            task = broker.task_table.tasks[task_id]
            task.work_seq, task.until = 0, until
            worker_state.outstanding[task_id] = task
        return [task_id for task_id in dropped if task_id not in kept]

    # ---------------------------------------------------------------------- living

    def heartbeat(self, worker_state: WorkerState, message: Heartbeat) -> None:
        """Renew the lease; hand-outs that the worker should hold and does not are lost."""
        self._heard(worker_state)
        worker_state.window, worker_state.running, worker_state.stuck = (
            message.window,
            message.running,
            message.stuck,
        )
        worker_state.trouble = message.trouble
        if worker_state.outstanding:
            held = set(message.held_ids)
            # After a whole lease even the last hand-out has arrived, or never will.
            is_quiet = self._state.now - worker_state.last_assignment > self._state.policy.lease_s
            lost = [
                task
                for task in worker_state.outstanding.values()
                if (is_quiet or task.work_seq <= message.work_seq) and task.id not in held
            ]
            self._mislaid(worker_state, lost)
        if worker_state.types != set(message.task_types) or worker_state.models != set(
            message.models
        ):
            self._state.registry.offer(worker_state, message.task_types, message.models)
        self._say_received(worker_state, [])
        self._state.tell(worker_state, Beat(self._state.epoch))
        self._state.registry.refresh(worker_state)

    def results(self, worker_state: WorkerState, message: Results) -> None:
        """Record what the worker has finished; acknowledged once it is on disk."""
        broker = self._state
        self._heard(worker_state)
        worker_state.window = message.window
        tasks, tokens, kinds = broker.task_table.tasks, message.tokens, message.kinds
        ids, payloads = message.ids, message.payloads
        ns: list[int] = []
        others: list[int] = []
        for index, task_id in enumerate(ids):
            task = tasks.get(task_id)
            if task is None or task.token != tokens[index] or kinds[index] != SUCCEEDED:
                others.append(index)
                continue
            task.token = b""  # a second copy in the same message must not count
            ns.append(task.n)
        if others:  # seldom: else the message's own columns will do
            good = sorted(set(range(len(ids))).difference(others))
            ids, payloads = [ids[index] for index in good], [payloads[index] for index in good]
        if ids:
            self._outcomes.complete(worker_state.worker_id, ids, ns, payloads)
            worker_state.failures_in_a_row = 0
        for index in others:
            self._unusual_result(worker_state, message, index)
        if not worker_state.results:
            self._reporting.append((worker_state, worker_state.work_seq))
        worker_state.results.append(message.seq)
        broker.registry.refresh(worker_state)

    def acknowledge(self) -> None:
        """Acknowledge the results of this wake-up, after what it has handed out.

        A worker that holds one task at a time and was just given its next will soon be
        given another: the acknowledgement goes with that one, or with its next `Beat`. Where
        tasks come one by one the next one is a moment away: it is waited for, `RECEIVED_WAIT_S`.
        """
        reporting, self._reporting = self._reporting, []
        for worker_state, work_seq in reporting:
            results, worker_state.results = worker_state.results, []
            if (
                worker_state.window == 1
                and worker_state.is_live
                and worker_state.work_seq != work_seq
            ):
                worker_state.owed += results
            elif (
                len(reporting) == len(results) == 1
                and worker_state.is_live
                and not worker_state.outstanding
            ):
                worker_state.owed += results
                self._scheduler.after(RECEIVED_WAIT_S, self._say_owed, worker_state)
            else:
                self._say_received(worker_state, results)

    def _say_owed(self, worker_state: WorkerState) -> None:
        if worker_state.owed and worker_state.is_live:
            self._say_received(worker_state, [])

    def _say_received(self, worker_state: WorkerState, results: list[int]) -> None:
        owed, worker_state.owed = worker_state.owed, []
        for seq in (*owed, *results):
            self._state.send(worker_state.peer, Received(seq), waits=True)

    def _unusual_result(self, worker_state: WorkerState, message: Results, index: int) -> None:
        """A failure, a repeat, or a late result of an earlier attempt."""
        broker = self._state
        task_id, token = message.ids[index], message.tokens[index]
        kind, payload = message.kinds[index], message.payloads[index]
        name = worker_state.worker_id
        claim = broker.signer.check(token, task_id)
        if claim is None:
            broker.reject("token.invalid")
            return
        found = broker.task_table.find(task_id)
        if found is None or broker.task_table.state_of(task_id) is None:
            broker.duplicates += 1
            worker_state.outstanding.pop(task_id, None)
            return
        task = broker.task_table.tasks.get(task_id)
        if task is not None and task.token == token and task.state is TaskState.RUNNING:
            is_final = kind == REFUSED
            if not is_final:  # what it refuses is the task's fault, not its own
                worker_state.failures_in_a_row += 1
            self._scheduler.attempt_failed(name, task, claim.n, payload, is_final=is_final)
        elif kind == SUCCEEDED and not found[0].spec.is_fenced:
            self._outcomes.complete(name, [task_id], [claim.n], [payload])
        else:
            broker.reject("result.stale")

    def _mislaid(self, worker_state: WorkerState, lost: list[TaskRecord]) -> None:
        """The worker should hold these and does not: the hand-out got lost, or they did there."""
        if lost:
            self._returns.take(
                worker_state.worker_id,
                lost,
                f"worker {worker_state.worker_id!r} did not get or keep it",
                MISLAID,
            )

    def release(self, worker_state: WorkerState, message: Release) -> None:
        """Queue again what the worker gives back; see `core.broker.returns` for what it costs."""
        self._heard(worker_state)
        worker_state.window = message.window
        given = [
            task
            for task_id, token in zip(message.ids, message.tokens, strict=True)
            if (task := worker_state.outstanding.get(task_id)) is not None and task.token == token
        ]
        if given:
            self._given_back(worker_state, given, message.reason)
        self._say_received(worker_state, [])
        self._state.registry.refresh(worker_state)

    def _given_back(self, worker_state: WorkerState, given: list[TaskRecord], reason: str) -> None:
        if reason:
            why = f"worker {worker_state.worker_id!r} could not run it: {reason}"
            self._returns.take(worker_state.worker_id, given, why, SERVICE_DOWN)
        elif worker_state.recalled:  # we asked for it
            worker_state.recalled = max(0, worker_state.recalled - len(given))
            self._scheduler.requeue(worker_state.worker_id, given, "called back for another worker")
        else:
            why = f"worker {worker_state.worker_id!r} gave it back unstarted"
            kind = UNSTARTED if worker_state.window else LEAVING
            self._returns.take(worker_state.worker_id, given, why, kind)

    def chunks(self, worker_state: WorkerState, message: Chunks) -> None:
        """Pass partial output on."""
        self._heard(worker_state)
        self._streaming.take(message)

    # --------------------------------------------------------------------- leaving

    def goodbye(self, worker_state: WorkerState) -> None:
        """A drained worker leaves; what it may still hold waits again, uncounted."""
        held = list(worker_state.outstanding.values())
        self._returns.take(
            worker_state.worker_id, held, f"its worker {worker_state.worker_id!r} left", LEAVING
        )
        self._state.registry.leave(worker_state)

    def lose(self, worker_state: WorkerState, why: str, *, is_counted: bool) -> None:
        """Take all from a worker and mark it offline.

        A loss counts only for the attempts that can have been running: the oldest, one
        per slot. Those behind them were waiting and are not to blame.
        """
        held = list(worker_state.outstanding.values())
        blamed = held[: worker_state.slots] if is_counted else []
        if blamed:
            self._scheduler.requeue(
                worker_state.worker_id, blamed, why, is_counted=True, is_loss=True
            )
        rest = held[len(blamed) :]
        if rest:
            self._scheduler.requeue(worker_state.worker_id, rest, why)
        self._state.registry.leave(worker_state)

    def sweep(self, worker_state: WorkerState) -> None:
        """Look at one mesh worker: lease, overdue attempts, prefetched ones nobody starts."""
        broker = self._state
        if broker.now - worker_state.last_heard > broker.policy.lease_s:
            blamed = list(worker_state.outstanding.values())[: worker_state.slots]
            if self._is_cut_off(worker_state) and all(map(_is_spared, blamed)):
                worker_state.unsure = {task.id: task.n for task in blamed}
                self.lose(worker_state, "nobody was heard", is_counted=False)
            else:
                self.lose(worker_state, "worker lost", is_counted=True)
            return
        self._scheduler.take_overdue(worker_state)
        worker_state.note_asking(broker.now)
        excess = len(worker_state.outstanding) - worker_state.slots
        if excess > 0 and self._somebody_idles(worker_state):
            worker_state.recalled = excess
            broker.tell(worker_state, Recall(excess))
        else:
            worker_state.recalled = 0

    def _is_cut_off(self, worker_state: WorkerState) -> bool:
        """Nobody beyond this machine was heard after it: our own network may be what is gone.

        A worker that comes back and had died is blamed then. What is on this machine is no
        witness, and no such cut makes it silent.
        """
        broker = self._state
        if is_loopback(worker_state.peer.address):
            return False
        if self._last_word[0] != broker.now:  # once for all that fall silent at once
            mesh = [
                each
                for each in broker.registry.worker_states.values()
                if each.dialect is Dialect.MESH
            ]
            heard = [(each.peer, each.last_heard) for each in mesh]
            heard += [(each.peer, each.last_heard) for each in broker.clients.values()]
            outside = [at for peer, at in heard if not is_loopback(peer.address)]
            self._last_word = (broker.now, max(outside))
        return (
            self._last_word[1]
            <= worker_state.last_heard + CUT_HEARTBEATS * broker.policy.heartbeat_s
        )

    def _somebody_idles(self, worker_state: WorkerState) -> bool:
        """Another free worker with nothing to do, while this one is at the same tasks."""
        newest = next(reversed(worker_state.outstanding.values()))
        if newest.until - self._state.now > self._scheduler.full_time_s - RECALL_AFTER_S:
            return False  # handed out just now
        line = self._state.registry.free.get(newest.batch.spec.type, {})
        return any(other is not worker_state and not other.outstanding for other in line.values())

    def _heard(self, worker_state: WorkerState) -> None:
        worker_state.last_heard, worker_state.last_heard_at = self._state.now, self._state.at


def _is_spared(task: TaskRecord) -> bool:
    """One more time a silence with this task is taken for a cut: it may be what kills workers."""
    history = task.remember()
    history.cuts += 1
    return history.cuts <= MAX_CUTS


def _counts_already(task: TaskRecord, claim: Claim) -> bool:
    """The failure of this attempt was told before, whoever has it in an outbox by now."""
    told = () if task.history is None else task.history.failures
    return any(n == claim.n and worker_tag(name) == claim.worker_tag for name, n in told)


def _is_fenced_off(task: TaskRecord, claim: Claim, token: bytes) -> bool:
    """An attempt of a fenced task that ended here, or after which another was handed out."""
    if not task.batch.spec.is_fenced or claim.n > task.n:  # larger: its hand-out was not stored
        return False
    return not _is_current(task, claim, token)


def _is_current(task: TaskRecord, claim: Claim, token: bytes) -> bool:
    """The attempt that runs; after a restart its token is not known, but what it says is."""
    if task.state is not TaskState.RUNNING or task.token:
        return task.token == token
    return (claim.n, claim.worker_tag) == (task.n, worker_tag(task.worker_id))


def refuse_hello(version: int, mesh: str, broker: BrokerState) -> Refused | None:
    """Return why a HELLO is refused, or None."""
    if version not in VERSIONS:
        spoken = ", ".join(map(str, VERSIONS))
        return Refused(0, "protocol.version", f"version {version}: spoken here are {spoken}")
    if mesh != broker.policy.mesh:
        return Refused(0, "access.forbidden", f"this is mesh {broker.policy.mesh!r}, not {mesh!r}")
    return None
