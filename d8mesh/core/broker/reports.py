"""What is told about tasks and workers: the documented bodies, made from memory.

Payloads stay msgpack bytes; the asker decodes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from d8mesh.core.broker import catalogue, explain, member_report, model_report, placement
from d8mesh.core.broker.metrics import Snapshot
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import Batch, History, TaskRecord
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.store import FinishedTask, PastAttempt
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.membership import announced_proof
from d8mesh.core.protocol.source import source_of
from d8mesh.core.protocol.task import Spec, TaskState

Body = dict[str, object]

#: What comes sooner than this comes at once, for people.
SOON_S: Final = 0.05

#: Why tasks wait that share all that decides it: a page of a listing has many of them.
SharedReasons = dict[tuple[str, str, int, bool, frozenset[str]], str]


def unfinished(
    state: BrokerState,
    task_id: str,
    *,
    is_single: bool = False,
    reasons: SharedReasons | None = None,
) -> Body | None:
    """Return the status body of an unfinished task, or None if it is finished or unknown.

    Args:
        is_single: tell how many go before it too, and which type is the nearest to one that
            nobody offers; both take a look at much.
        reasons: those that were found out just now.
    """
    stage = state.task_table.state_of(task_id)
    found = state.task_table.find(task_id)
    if stage is None or found is None:
        return None
    batch, index = found
    task = state.task_table.tasks.get(task_id)
    body = _body(task_id, batch.spec, stage, batch.at)
    if task is not None:
        body["attempts"] = task.n
        body["assigned_to"] = task.worker_id or None
    of_many = None if is_single else {} if reasons is None else reasons
    reason = _reason(state, batch, task_id, stage, of_many)
    if (
        is_single
        and stage is TaskState.QUEUED
        and (
            placement.is_offered(batch.spec.type, state.registry)
            or explain.waits_for_service(state, batch.spec)
        )
    ):
        count, is_more = state.queue.ahead_of(batch, index)
        ahead = f"{'more than ' if is_more else ''}{count} waiting before it" if count else ""
        reason = "; ".join(part for part in (reason, ahead) if part) or None
    body["reason"] = reason
    return body


def _body(task_id: str, spec: Spec, stage: TaskState, created_at: float) -> Body:
    source = source_of(spec.source)
    return {
        "task_id": task_id,
        "type": spec.type,
        "status": stage.documented,
        "state": stage.value,
        "priority": spec.priority,
        "assigned_to": None,
        "created_at": created_at,
        "completed_at": None,
        "result": None,
        "attempts": 0,
        "reason": None,
        "replay_of": spec.replay_of or None,
        "door": source.door or None,
        "caller": source.caller or None,
        "erased": False,
    }


def _reason(
    state: BrokerState, batch: Batch, task_id: str, stage: TaskState, of_many: SharedReasons | None
) -> str | None:
    """Say why a task is not further than it is; `of_many`: it is told of among many."""
    task = state.task_table.tasks.get(task_id)
    history = History() if task is None or task.history is None else task.history
    trouble = _trouble(history)
    if stage is TaskState.RUNNING and task is not None:
        worker = state.registry.workers.get(task.worker_id)
        if worker is None or task_id not in worker.outstanding:
            return f"waiting for worker {task.worker_id!r} to come back"
        return trouble or None
    if stage is TaskState.DELAYED:
        if trouble:
            left_s = max(0.0, history.not_before_at - state.at)
            soon = f"waiting to be tried again in {left_s:.1f} s"
            if left_s < SOON_S:
                soon = "about to be tried again"
            return f"{soon}; {trouble}"
        return f"to be run at {batch.spec.run_at}"
    why = _why_queued(state, batch, task, of_many)
    return "; ".join(part for part in (why, trouble) if part) or None


def _why_queued(
    state: BrokerState, batch: Batch, task: TaskRecord | None, of_many: SharedReasons | None
) -> str:
    key = LaneKey.of(batch.spec)
    if not explain.waits_for_service(state, batch.spec):
        is_one_of_many = of_many is not None
        return placement.why_waiting(key, state.registry, is_one_of_many=is_one_of_many)
    if of_many is None:
        return explain.why_waiting(state, batch, task)
    failed_at = frozenset[str]() if task is None else task.failed_at
    alike = (*key, batch.spec.priority, batch.at < state.started_at, failed_at)
    if alike not in of_many:
        of_many[alike] = explain.why_waiting(state, batch, task)
    return of_many[alike]


def _trouble(history: History) -> str:
    """Return what went wrong last; empty if nothing did."""
    if not history.last_return:
        return f"last error: {history.last_error}" if history.errors else ""
    if history.all_returns < 2:
        return f"given back: {history.last_return}"
    return f"given back {history.all_returns} times, the last time: {history.last_return}"


def explained(state: BrokerState, task_id: str) -> Body | None:
    """Return why an unfinished task is not further, or None if it is finished or unknown."""
    status = unfinished(state, task_id, is_single=True)
    if status is None:
        return None
    return explain.unfinished(state, task_id, str(status["reason"] or ""))


def finished(task: FinishedTask) -> Body:
    """Return the status body of a finished task."""
    return _body(task.id, task.spec, task.state, task.created_at) | {
        "assigned_to": task.worker_id,
        "completed_at": task.at,
        "result": task.payload,
        "attempts": task.n,
        "reason": task.why,
        "history": history(task.past),
        "erased": task.is_erased,
    }


def history(past: list[PastAttempt]) -> list[Body]:
    """Return what went wrong with a task, as it is told."""
    return [msgspec.to_builtins(each) for each in past]


def snapshot(state: BrokerState) -> Snapshot:
    """Return how the broker stands now."""
    workers = state.registry.workers.values()
    closed_for = "the disk is nearly full" if state.is_disk_low else None
    return Snapshot(
        queued=state.task_table.queued,
        running=state.task_table.running,
        workers=len(workers),
        workers_online=sum(worker.is_live for worker in workers),
        workers_busy=sum(worker.is_live and worker.is_busy for worker in workers),
        clients=len(state.clients),
        closed_for="shutting down" if state.is_draining else closed_for,
        counted=state.metrics.copy(),
    )


def health(state: BrokerState) -> Body:
    """Return the body of the ``health`` question."""
    now, policy = snapshot(state), state.policy
    secret = policy.mesh_secret
    return {
        "workers_online": now.workers_online,
        "tasks_pending": now.queued,
        "tasks_in_progress": now.running,
        "is_accepting": now.closed_for is None,
        "reason": now.closed_for,
        "epoch": state.epoch,
        "broker_id": policy.broker_id,
        "broker_port": policy.broker_port,
        "server_key": policy.server_key.hex(),
        "proof": "" if secret is None else announced_proof(secret, policy.server_key).hex(),
        "tls": policy.tls,
        "mesh": policy.mesh,
        "version": policy.version,
        "join": member_report.modes_of(state),
        "keys_waiting": len(state.members.waiting),
        "rejected": now.counted.rejected,
        "duplicates": now.counted.duplicates,
    }


def stats(state: BrokerState) -> Body:
    """Return the documented body of ``/api/stats``; the counts are lifetime counts."""
    now = snapshot(state)
    totals = now.counted.totals
    tried = totals.completed + totals.failed
    by_type = Counter(worker.worker_type for worker in state.registry.workers.values())
    return {
        "workers": {
            "total": now.workers,
            "online": now.workers_online,
            "busy": now.workers_busy,
            "by_type": dict(by_type),
        },
        "tasks": {
            "total": tried + totals.cancelled + now.queued + now.running,
            "pending": now.queued,
            "assigned": now.running,
            "completed": totals.completed,
            "failed": totals.failed,
            "cancelled": totals.cancelled,
        },
        "performance": {
            "total_completed": totals.completed,
            "total_failed": totals.failed,
            "success_rate": 100.0 * totals.completed / tried if tried else 0,
        },
    }


def queue(state: BrokerState, listed: list[Body]) -> Body:
    """Return the body of the ``queue`` question, but for its cursor, from status bodies."""
    keys = ("task_id", "type", "priority", "status", "created_at", "state")
    totals, task_table = state.task_table.totals, state.task_table
    return {
        "queue": [{key: body[key] for key in keys} for body in listed],
        "pending": task_table.queued,
        "assigned": task_table.running,
        "completed": totals.completed,
        "failed": totals.failed,
        "cancelled": totals.cancelled,
    }


def workers(state: BrokerState) -> Body:
    """Return the documented body of ``/api/workers/list``."""
    listed = [_worker(state, worker) for worker in state.registry.workers.values()]
    return {"workers": listed, "total": len(listed)}


def _worker(state: BrokerState, worker: WorkerState) -> Body:
    record = state.task_table.workers.get(worker.worker_id)
    types = worker.types | worker.placed_types
    capabilities: object = {"task_types": sorted(types), "models": sorted(worker.models)}
    if worker.dialect is Dialect.POLLING and record is not None and record.capabilities:
        capabilities, _ = record.registered()
    status = "offline" if not worker.is_live else "busy" if worker.is_busy else "online"
    return {
        "worker_id": worker.worker_id,
        "worker_type": worker.worker_type,
        "status": status,
        "last_heartbeat": worker.last_heard_at,
        "tasks_completed": 0 if record is None else record.completed,
        "tasks_failed": 0 if record is None else record.failed,
        "capabilities": capabilities,
        "dialect": worker.dialect.value,
        "host": worker.host,
        "address": worker.peer.address,
        "status_port": worker.status_port or None,
        "slots": worker.slots,
        "running": min(len(worker.outstanding) - worker.placed, worker.slots),
        "placed": worker.placed,
        "stuck": worker.stuck,
        "reason": (worker.is_live and worker.trouble) or None,
    }


#: Questions that are answered with how things stand, whatever is asked along with them.
OF_NOW: Final[dict[str, Callable[[BrokerState], Body]]] = {
    "health": health,
    "stats": stats,
    "workers": workers,
    "models": model_report.models,
    "catalogue": catalogue.catalogue,
}
