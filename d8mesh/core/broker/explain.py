"""Why a task waits and what would run it; why a finished one ran where it ran.

Bodies of the question ``explain``, in sentences: for people, and as data beside. Nothing is
guessed: what is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from d8mesh.core.broker import obstacles, placement, service_views
from d8mesh.core.broker.obstacles import Remedy, duration
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import Batch, History, TaskRecord
from d8mesh.core.broker.standings import Decision, Obstacle, Standing
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.store import MAX_PAST_ATTEMPTS, FinishedTask
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.chat import MODEL_TYPES
from d8mesh.core.protocol.model_names import nearest, plain_name
from d8mesh.core.protocol.source import is_waited_for, source_of
from d8mesh.core.protocol.task import Spec, TaskState
from d8mesh.core.protocol.wish import SERVICE_TYPES, Cloud, Wish, parse_wish

Body = dict[str, object]

#: Workers and services that are told of, each: nobody reads more.
MAX_CANDIDATES_TOLD: Final = 64
#: A shorter wait is none, for people.
MIN_TOLD_S: Final = 0.05
#: Types that every worker offers.
BUILT_IN: Final = frozenset(placement.DOCUMENTED_TYPES)


def waits_for_service(state: BrokerState, spec: Spec) -> bool:
    """Return whether services answer such tasks, so that `why_waiting` knows why they wait."""
    return state.services.answers(spec.type)


def why_waiting(state: BrokerState, batch: Batch, task: TaskRecord | None = None) -> str:
    """Return in one sentence why a task waits that services answer; empty: it need not."""
    return obstacles.reason(parse_wish(batch.spec.model), _standings(state, batch, task))


def _standings(state: BrokerState, batch: Batch, task: TaskRecord | None) -> list[Standing]:
    failed_at = frozenset[str]() if task is None else task.failed_at
    return service_views.standings(state, batch.spec, failed_at, batch.at)


def unfinished(state: BrokerState, task_id: str, summary: str) -> Body:
    """Return why an unfinished task is not further than it is.

    Args:
        summary: the same in one sentence, as its status says it; empty: nothing is in its way.
    """
    stage = state.task_table.state_of(task_id)
    found = state.task_table.find(task_id)
    assert stage is not None
    assert found is not None
    batch, index = found
    task = state.task_table.tasks.get(task_id)
    body = _body(task_id, batch.spec, stage, summary)
    body["waited_s"] = max(0.0, state.at - (batch.spec.run_at or batch.at))
    if stage is TaskState.RUNNING and task is not None:
        why = [*_came(batch.spec), *_running(state, task)]
        return body | {"why": why, "attempts": _attempts(state, task_id)}
    ahead = state.queue.ahead_of(batch, index) if stage is TaskState.QUEUED else None
    why = [*_came(batch.spec), *_waiting(state, batch, stage, task, ahead)]
    candidates, remedies = _who_could(state, batch, task)
    if stage is TaskState.DELAYED:
        remedies = []
    return body | {
        "ahead": None if ahead is None else ahead[0],
        "ahead_is_more": ahead is not None and ahead[1],
        "why": why,
        "candidates": candidates,
        "remedies": [{"text": each.text, "command": each.command or None} for each in remedies],
        "attempts": _attempts(state, task_id),
    }


def _body(task_id: str, spec: Spec, stage: TaskState, summary: str) -> Body:
    return {
        "task_id": task_id,
        "type": spec.type,
        "state": stage.value,
        "summary": summary,
        "waited_s": None,
        "ahead": None,
        "ahead_is_more": False,
        "why": [],
        "candidates": [],
        "remedies": [],
        "attempts": [],
    }


def _came(spec: Spec) -> Iterator[str]:
    """Yield the door that it came in by, and who asked there."""
    source = source_of(spec.source)
    if source.caller:
        yield f"it came in at the door {source.door}, from {source.caller}"
    elif source.door:
        yield f"it came in at the door {source.door}"


# ---------------------------------------------------------------------- why it waits


def _waiting(
    state: BrokerState,
    batch: Batch,
    stage: TaskState,
    task: TaskRecord | None,
    ahead: tuple[int, bool] | None,
) -> Iterator[str]:
    spec, history = batch.spec, None if task is None else task.history
    if stage is TaskState.DELAYED:
        yield from _delayed(state, spec, history)
    else:
        yield f"it has waited {duration(max(0.0, state.at - (spec.run_at or batch.at)))} so far"
        if ahead == (0, False):  # else the summary says how many
            yield "none of its kind goes before it"
    if state.is_draining:
        yield "the orchestrator is shutting down and hands out nothing"
    if state.services.answers(spec.type) or spec.type in SERVICE_TYPES:
        yield from _wished(spec.type, parse_wish(spec.model))
        yield from _near_models(state, spec)
    yield from _trouble(history)
    if spec.deadline_at is not None:
        left_s = spec.deadline_at - state.at
        yield f"it fails if it is not finished in {duration(left_s)}"


def _delayed(state: BrokerState, spec: Spec, history: History | None) -> Iterator[str]:
    if history is not None and history.not_before_at > state.at:
        pause_s = history.not_before_at - state.at
        yield f"it pauses after what went wrong, and is tried again in {duration(pause_s)}"
    else:
        left_s = (spec.run_at or state.at) - state.at
        yield f"it was submitted for a later time, in {duration(left_s)}"


def _wished(kind: str, wish: Wish) -> Iterator[str]:
    """Yield what a task wishes for, as far as that keeps it from running anywhere."""
    if kind not in MODEL_TYPES:
        pass
    elif len(wish.models) > 1:
        yield f"it asks for the first of these models that can begin: {', '.join(wish.models)}"
    elif wish.models and wish.is_strict:
        yield f"it asks for the model {wish.models[0]!r} and takes no other"
    elif wish.models:
        yield f"it asks for the model {wish.models[0]!r}, another answers if nobody has that"
    else:
        yield "it asks for no model: each service answers with its own"
    if wish.needs:
        yield f"the model must be capable of {', '.join(sorted(wish.needs))}"
    if wish.machine:
        yield f"it may run on {wish.machine!r} only"
    if wish.cloud is not None:
        yield _CLOUD[wish.cloud]


def _near_models(state: BrokerState, spec: Spec) -> Iterator[str]:
    """Yield which models may have been meant by names that no service has."""
    if spec.type not in MODEL_TYPES:
        return
    table = state.services
    known = [models[0].name for models in table.by_name.values()]
    for wished in parse_wish(spec.model).models:
        if not table.awaits(plain_name(wished)) and (near := nearest(wished, known)):
            yield f"no service has {wished!r}; did you mean {near!r}?"


_CLOUD: Final = {
    Cloud.NEVER: "its data may not leave the LAN",
    Cloud.OVERFLOW: "it may go to the cloud if no machine of the LAN can begin soon",
    Cloud.YES: "it may go to the cloud as to any machine",
}


def _trouble(history: History | None) -> Iterator[str]:
    """Yield how often things went wrong with an unfinished task; its status says what did."""
    if history is None:
        return
    if history.errors:
        yield f"attempts that failed so far: {history.errors}"
    if history.all_returns:
        yield f"given back so far: {history.all_returns}"


# ------------------------------------------------------------------------ who could run it


def _who_could(
    state: BrokerState, batch: Batch, task: TaskRecord | None
) -> tuple[list[Body], list[Remedy]]:
    """Return who could run a task, or why not, and what would help."""
    spec = batch.spec
    standings: list[Standing] = []
    # A service that is down answers nothing, and can be started.
    is_known = spec.type in MODEL_TYPES and bool(state.services.services)
    if is_known or state.services.answers(spec.type):
        standings = _standings(state, batch, task)
    told = [_candidate(each) for each in standings]
    workers = list(_workers(state, spec, task))
    told += workers
    remedies = obstacles.remedies(parse_wish(spec.model), standings) if standings else []
    if not standings:
        remedies = _remedies_for_workers(state, spec, workers)
    return told[:MAX_CANDIDATES_TOLD], remedies


def _candidate(standing: Standing) -> Body:
    return {
        "service": standing.service,
        "machine": standing.machine,
        "kind": standing.kind,
        "model": standing.model or None,
        "is_cloud": standing.is_cloud,
        "state": standing.obstacle.value if standing.obstacle is not None else "free",
        "text": obstacles.state_of(standing),
        "in_flight": standing.in_flight,
        "slots": standing.slots,
        "until_s": standing.until_s,
        "estimate_s": standing.estimate_s,
    }


def _workers(state: BrokerState, spec: Spec, task: TaskRecord | None) -> Iterator[Body]:
    """Yield the workers that run such tasks by themselves, without a service of theirs."""
    key = LaneKey.of(spec)
    for worker in state.registry.workers.values():
        if spec.type not in worker.types or spec.type in worker.placed_types:
            continue
        word, text = _state_of(state, worker, key, task)
        yield {
            "worker": worker.worker_id,
            "machine": worker.host or worker.peer.address,
            "state": word,
            "text": text,
            "in_flight": len(worker.outstanding),
            "slots": worker.slots,
        }


def _state_of(
    state: BrokerState, worker: WorkerState, key: LaneKey, task: TaskRecord | None
) -> tuple[str, str]:
    """Return how a worker stands to a task, as a word and as a sentence."""
    if not worker.is_live:
        ago_s = state.at - worker.last_heard_at
        return "away", f"away, last heard of {duration(ago_s)} ago"
    machine = parse_wish(key.model).machine
    if machine and not worker.is_at(machine):
        return "elsewhere", "not the machine that the task asks for"
    if not placement.can_run(worker, key, state.registry):
        if key.type in placement.MESH_FIRST_TYPES and worker.dialect is Dialect.POLLING:
            return "not_suited", "mesh workers go before it with tasks of this type"
        return "not_suited", "it does not have the model that the task asks for"
    if task is not None and not placement.suits_retry(worker, task, state.registry):
        return "failed_before", "it failed this task before, others are tried first"
    count = min(len(worker.outstanding), worker.slots)
    if worker.is_free:
        return "free", "free, it could have the task now"
    if count >= worker.slots or worker.outstanding:
        return "full", f"busy with {count} of {worker.slots} slots"
    if worker.dialect is Dialect.POLLING:
        return "silent", "it fetches its tasks itself, and does not ask for one now"
    if worker.trouble:
        return "down", f"it takes nothing now: {worker.trouble}"
    return "down", "it takes nothing now, it does not say why"


def _remedies_for_workers(state: BrokerState, spec: Spec, workers: list[Body]) -> list[Remedy]:
    if any(each["state"] == "free" for each in workers):
        return []
    if spec.type in MODEL_TYPES and not placement.is_offered(spec.type, state.registry):
        return [Remedy("start a worker on a machine with a language model", "worker")]
    away = [str(each["machine"]) for each in workers if each["state"] == "away"]
    found = [Remedy(f"start a worker on {machine}", "worker") for machine in sorted(set(away))]
    found = found[: obstacles.MAX_PLACES_NAMED]
    if workers or spec.type in BUILT_IN:
        return [*found, Remedy("start one more worker", "worker")]
    return [*found, Remedy(f"start a worker that offers {spec.type!r}", "worker --tasks MODULE")]


# -------------------------------------------------------------------------- what happened


def _running(state: BrokerState, task: TaskRecord) -> Iterator[str]:
    worker = state.registry.workers.get(task.worker_id)
    if worker is None or task.id not in worker.outstanding:
        yield f"it ran on worker {task.worker_id!r}, which is away; its return is waited for"
        return
    since_s = state.now - task.attempt.since
    if task.attempt.since:
        yield (
            f"worker {task.worker_id!r} has it since {duration(since_s)}, as attempt {task.n}: "
            "it runs there, or is about to"
        )
    else:
        yield f"worker {task.worker_id!r} has it, as attempt {task.n}; it is not known since when"
    decision = _last_decision(state, task.id, task.n)
    if decision is not None:
        yield from _chosen(decision)
    yield from _trouble(task.history)


def _last_decision(state: BrokerState, task_id: str, n: int) -> Decision | None:
    kept = [each for each in state.services.decisions_of(task_id) if each.attempt == n]
    return kept[-1] if kept else None


def _attempts(state: BrokerState, task_id: str) -> list[Body]:
    """Return what is kept of where the attempts of a task were placed."""
    return [
        {
            "attempt": each.attempt,
            "service": each.service,
            "machine": _machine_of(each),
            "model": each.model,
            "at": each.at,
            "waited_s": each.waited_s,
            "candidates": [_candidate(standing) for standing in each.candidates],
        }
        for each in state.services.decisions_of(task_id)
    ]


def _machine_of(decision: Decision) -> str | None:
    standing = _standing_of(decision)
    return None if standing is None else standing.machine


def _standing_of(decision: Decision) -> Standing | None:
    """Return how the one stood that an attempt was placed at, as far as that was kept."""
    place = (decision.service, decision.model)
    return next((s for s in decision.candidates if (s.service, s.model) == place), None)


def _chosen(decision: Decision) -> Iterator[str]:
    """Yield why an attempt was placed where it was."""
    standing = _standing_of(decision)
    if standing is None:
        yield f"it went to the model {decision.model!r}; who else could have had it is not known"
        return
    where = f"it went to {standing.machine} with the model {decision.model!r}"
    others = [
        each
        for each in decision.candidates
        if each is not standing and each.obstacle in (None, Obstacle.HELD_BACK)
    ]
    if not others:
        yield f"{where}, the only one that could begin with it then"
    elif (own_s := standing.estimate_s) is None:
        yield f"{where}; how long it would take was not known"
    elif all(each.estimate_s is None or each.estimate_s > own_s for each in others):
        yield f"{where}, which would be done with it first, in about {duration(own_s)}"
    else:
        yield f"{where}, done in about {duration(own_s)}; others would have been about as quick"


# ----------------------------------------------------------------------------- the finished


class RanAt(msgspec.Struct):
    """Of a result what tells where it ran; what else it has is passed over."""

    model: object = None
    model_requested: object = None
    machine: object = None
    service: object = None
    backend: object = None
    is_cloud: object = None
    duration_s: object = None


def finished(state: BrokerState, task: FinishedTask) -> Body:
    """Return why a finished task ran where it ran, and how it ended."""
    ran = _ran_at(task.payload)
    began_at = _began_at(state, task, ran)
    body = _body(task.id, task.spec, task.state, _ended(task))
    body["waited_s"] = None if began_at is None else max(0.0, began_at - _due_at(task))
    body["why"] = [*_came(task.spec), *_told_of_end(state, task, ran, began_at)]
    body["attempts"] = _attempts(state, task.id)
    return body


def _ended(task: FinishedTask) -> str:
    if task.state is TaskState.COMPLETED:
        return "it completed"
    if task.state is TaskState.CANCELLED:
        if is_waited_for(task.spec.source):
            return "it was cancelled: its caller left before the end, or somebody cancelled it"
        return "it was cancelled"
    return f"it failed: {task.why}" if task.why else "it failed, it is not known why"


def _began_at(state: BrokerState, task: FinishedTask, ran: RanAt) -> float | None:
    """Return when the last attempt began (Unix seconds), as far as that is known."""
    decision = _last_decision(state, task.id, task.n)
    if decision is not None:
        return decision.at
    took_s, most_s = ran.duration_s, task.at - _due_at(task)
    if task.state is not TaskState.COMPLETED or not isinstance(took_s, (int, float)):
        return None
    return task.at - took_s if 0 <= took_s <= most_s else None


def _due_at(task: FinishedTask) -> float:
    """Return when the task could first have been run (Unix seconds)."""
    return max(task.created_at, task.spec.run_at or 0.0)


def _told_of_end(
    state: BrokerState, task: FinishedTask, ran: RanAt, began_at: float | None
) -> Iterator[str]:
    due_at = _due_at(task)
    if not task.n:
        yield f"it was never begun; that was so for {duration(task.at - due_at)}"
        return
    decision = _last_decision(state, task.id, task.n)
    if decision is not None:
        yield from _chosen(decision)
    elif isinstance(ran.machine, str) and isinstance(ran.model, str):
        yield f"it ran on {ran.machine} with the model {ran.model!r}, worker {task.worker_id!r}"
    elif task.worker_id:
        yield f"the last to have it was worker {task.worker_id!r}"
    if decision is None and task.spec.type in MODEL_TYPES:
        yield "who else could have run it is not known any more"
    if ran.is_cloud is True:
        yield "that is in the cloud: its data left the LAN"
    if isinstance(ran.model_requested, str) and ran.model_requested:
        yield f"it asked for the model {ran.model_requested!r}, and another answered"
    if began_at is None:
        yield (
            f"from its submit to its end it took {duration(task.at - due_at)}; "
            "how much of that it waited is not known"
        )
    else:
        ended_at = max(began_at, _last_end(task))
        waited, took = duration(began_at - due_at), duration(ended_at - began_at)
        if task.n > 1:
            yield f"its last attempt (number {task.n}) began after {waited} and took {took}"
        elif began_at - due_at < MIN_TOLD_S:
            yield f"it did not wait, and took {took}"
        else:
            yield f"it waited {waited} and took {took}"
        if task.at - ended_at >= MIN_TOLD_S:
            yield f"then it waited {duration(task.at - ended_at)} to be tried again"
    yield from _past(task)


def _last_end(task: FinishedTask) -> float:
    """Return when the last attempt ended (Unix seconds): a task may end while it waits again."""
    last = task.past[-1] if task.past else None
    if task.state is TaskState.COMPLETED or last is None or last.attempt != task.n:
        return task.at
    return min(last.at, task.at)


def _past(task: FinishedTask) -> Iterator[str]:
    """Yield how often it was given back and failed, and why."""
    least = "at least " if len(task.past) >= MAX_PAST_ATTEMPTS else ""
    returned = [each for each in task.past if not each.is_counted]
    failed = [each for each in task.past if each.is_counted]
    if failed:
        last = failed[-1].error
        yield f"attempts that failed: {least}{len(failed)}, the last time: {last}"
    if returned:
        yield f"given back: {least}{len(returned)}, the last time: {returned[-1].error}"
    if not failed and not returned:
        yield "it was never given back and never failed"


def _ran_at(payload: bytes) -> RanAt:
    """Return where a result says that it ran; the rest of it is skipped, not read."""
    try:
        return msgspec.msgpack.decode(payload, type=RanAt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RanAt()
