"""How mesh workers join, and come back with what they hold."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import RunningAttempt, TaskRecord
from d8mesh.core.broker.returns import Returns
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.messages import VERSIONS, Refused, WorkerHello
from d8mesh.core.protocol.task import Adopted, Recounted, TaskState
from d8mesh.core.protocol.tokens import Claim, worker_tag

#: Earlier starts of a worker that are told from a new one, if they prove to be alive still.
MAX_DISPLACED: Final = 8


class Joining:
    """Lets mesh workers join."""

    def __init__(self, state: BrokerState, returns: Returns) -> None:
        self._state = state
        self._returns = returns

    def hello(self, message: WorkerHello, peer: Peer) -> None:
        """Let a worker join, or come back with what it still holds."""
        state = self._state
        refusal = refuse_hello(message.version, message.mesh, state)
        old = state.registry.workers.get(message.worker_id)
        if refusal is None and old is not None and self._is_taken(old, message, peer):
            refusal = Refused(0, "worker.id_taken", f"{message.worker_id!r} is at work elsewhere")
        if refusal is not None:
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
        self._state.send(peer, state.welcome(message.version, dropped), waits=True)
        worker.welcomed = state.now
        state.registry.refresh(worker)

    def _held(self, message: WorkerHello) -> set[str]:
        """Return the tasks of which the worker holds the current attempt."""
        tasks, held = self._state.task_table.tasks, set[str]()
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = tasks.get(task_id)
            if task is not None and task.attempt.token == token:
                held.add(task_id)
        return held

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

    def _describe(self, worker: WorkerState, message: WorkerHello) -> None:
        worker.worker_type = message.worker_type
        worker.host = message.host
        worker.status_port = message.status_port
        worker.slots = max(1, message.slots)
        worker.window, worker.trouble = message.window, message.trouble
        worker.last_heard, worker.last_heard_at = self._state.now, self._state.at

    def _unblame(self, worker: WorkerState, message: WorkerHello) -> None:
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
                losses = sorted(task.history.losses)
                own = [
                    n for worker_id, n in losses if worker_id == worker.worker_id and n >= claim.n
                ]
                back.update(((task_id, n), None) for n in own)
        if back:
            ids, ns = [task_id for task_id, _ in back], [n for _, n in back]
            self._state.record(Recounted(worker.worker_id, ids, ns, is_loss=False))

    def _take_over(self, worker: WorkerState, message: WorkerHello) -> list[str]:
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
            if claim is None or task is None or _is_fenced_off(task, claim, token):
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
                task.attempt = RunningAttempt(token)
        if adopted:
            ns = [n for n, _ in adopted.values()]
            self._state.record(Adopted(worker.worker_id, list(adopted), ns))
        for task_id, (_, token) in adopted.items():
            task = state.task_table.tasks[task_id]
            task.attempt = RunningAttempt(token, until)
            worker.outstanding[task_id] = task
        return [task_id for task_id in dropped if task_id not in kept]


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
    if task.state is not TaskState.RUNNING or task.attempt.token:
        return task.attempt.token == token
    return (claim.n, claim.worker_tag) == (task.n, worker_tag(task.worker_id))


def refuse_hello(version: int, mesh: str, state: BrokerState) -> Refused | None:
    """Return why a HELLO is refused, or None."""
    if version not in VERSIONS:
        spoken = ", ".join(map(str, VERSIONS))
        return Refused(0, "protocol.version", f"version {version}: spoken here are {spoken}")
    if mesh != state.policy.mesh:
        return Refused(0, "access.forbidden", f"this is mesh {state.policy.mesh!r}, not {mesh!r}")
    return None
