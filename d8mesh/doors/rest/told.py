"""The bodies that the documented REST answers with, as types: each field that there may be.

Nothing is made with them. They are what `/openapi.json` tells of the answers, and what the tests
hold against those of a running mesh.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from d8mesh.core.protocol.task import TaskState

Number: TypeAlias = Annotated[int, Meta(ge=0)]
Amount: TypeAlias = Annotated[float, Meta(ge=0)]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
#: As existing clients know it.
DocumentedStatus: TypeAlias = Literal["pending", "assigned", "completed", "failed"]


class RejectedTold(Struct):
    """What was refused since the start, by code."""

    broker: dict[str, Number]
    rest: dict[str, Number]


class HealthTold(Struct):
    """How the orchestrator is; what comes from the broker is missing while that does not answer."""

    status: Literal["healthy", "unhealthy"]
    service: Literal["d8-orchestrator"]
    timestamp: str
    workers_online: Number
    tasks_pending: Number
    tasks_in_progress: Number
    rejected: RejectedTold
    is_accepting: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    epoch: Number | UnsetType = UNSET
    broker_id: str | UnsetType = UNSET
    broker_port: Number | UnsetType = UNSET
    mesh: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    duplicates: Number | UnsetType = UNSET
    #: the broker's public key and the proof that it knows the mesh key, in hex; of the certificate
    #: the fingerprint
    server_key: str | UnsetType = UNSET
    proof: str | UnsetType = UNSET
    tls: str | UnsetType = UNSET
    #: who may join, and how many keys wait to be approved
    join: list[str] | UnsetType = UNSET
    keys_waiting: Number | UnsetType = UNSET


class ClosedHealth(Struct):
    """What whoever shows no key is told: where the broker is, which then asks for it."""

    error: str
    code: str
    broker_id: str | UnsetType = UNSET
    broker_port: Number | UnsetType = UNSET
    mesh: str | UnsetType = UNSET
    server_key: str | UnsetType = UNSET
    proof: str | UnsetType = UNSET
    tls: str | UnsetType = UNSET


class WorkersCounted(Struct):
    """Workers, by how they are."""

    total: Number
    online: Number
    busy: Number
    by_type: dict[str, Number]


class TasksCounted(Struct):
    """Tasks, by how they stand."""

    total: Number
    pending: Number
    assigned: Number
    completed: Number
    failed: Number
    cancelled: Number


class PerformanceTold(Struct):
    """How the finished tasks ended."""

    total_completed: Number
    total_failed: Number
    success_rate: Percent


class StatsTold(Struct):
    """Lifetime counts."""

    workers: WorkersCounted
    tasks: TasksCounted
    performance: PerformanceTold


class SubmittedTold(Struct):
    """The task is on the disk."""

    task_id: str
    status: Literal["submitted"]
    message: str
    warnings: list[str] | UnsetType = UNSET


class SubmittedBatchTold(Struct):
    """All of them are."""

    task_ids: list[str]
    status: Literal["submitted"]
    warnings: list[str] | UnsetType = UNSET


class PastAttemptTold(Struct):
    """What went wrong with an attempt."""

    attempt: Number
    worker_id: str | None
    at: float
    is_counted: bool
    error: str
    pause_s: Amount
    traceback: str | UnsetType = UNSET


class StatusTold(Struct):
    """A task; `data` and `history` only if all of it was asked for."""

    task_id: str
    type: str
    status: DocumentedStatus
    state: TaskState
    priority: Annotated[int, Meta(ge=1, le=10)]
    assigned_to: str | None
    created_at: float
    completed_at: float | None
    result: Any
    attempts: Number
    reason: str | None
    replay_of: str | None
    door: str | None
    caller: str | None
    erased: bool
    data: Any = UNSET
    history: list[PastAttemptTold] | UnsetType = UNSET


class PageTold(Struct):
    """Some tasks; `next_cursor`: where the next page begins, null if there is none."""

    tasks: list[StatusTold]
    next_cursor: str | None


class QueuedTold(Struct):
    """A task that is not finished."""

    task_id: str
    type: str
    priority: Annotated[int, Meta(ge=1, le=10)]
    status: DocumentedStatus
    created_at: float
    state: TaskState


class QueueTold(Struct):
    """Those that are not finished, and counts of all."""

    queue: list[QueuedTold]
    pending: Number
    assigned: Number
    completed: Number
    failed: Number
    cancelled: Number
    next_cursor: str | None


class StateTold(Struct):
    """How a task stands now."""

    task_id: str
    state: TaskState


class ReplayedTold(Struct):
    """The new task."""

    task_id: str


class RemedyTold(Struct):
    """What would have a task run: in words, and one of d8mesh's commands."""

    text: str
    command: str | None


class AttemptTold(Struct):
    """Where an attempt was placed, and who else could have had it."""

    attempt: Number
    service: str
    machine: str
    model: str
    at: float
    waited_s: Amount
    candidates: list[dict[str, Any]]


class ExplainedTold(Struct):
    """Why a task waits, or why it ran where it ran; candidates are services and workers."""

    task_id: str
    type: str
    state: TaskState
    summary: str
    waited_s: Amount | None
    ahead: Number | None
    ahead_is_more: bool
    why: list[str]
    candidates: list[dict[str, Any]]
    remedies: list[RemedyTold]
    attempts: list[AttemptTold]


class DoneTold(Struct):
    """It was taken."""

    status: str
    success: bool


class BeatenTold(Struct):
    """The heartbeat was heard."""

    status: Literal["ok"]


class RegisteredTold(Struct):
    """The worker is known."""

    status: Literal["registered"]
    success: bool
    worker_id: str
    message: str


class PolledTold(Struct):
    """A task with the keys of its data beside it, or none."""

    task: dict[str, Any] | None


class WorkerTold(Struct):
    """A worker, mesh or polling."""

    worker_id: str
    worker_type: str
    status: Literal["offline", "busy", "online"]
    last_heartbeat: float
    tasks_completed: Number
    tasks_failed: Number
    capabilities: dict[str, Any]
    dialect: str
    host: str
    address: str
    status_port: Number | None
    slots: Number
    running: int
    placed: Number
    stuck: Number
    reason: str | None


class WorkersTold(Struct):
    """All workers that are known."""

    workers: list[WorkerTold]
    total: Number


class PlaceTold(Struct):
    """A model at a service; what was not measured yet is null."""

    service: str
    machine: str
    kind: str
    is_cloud: bool
    state: Literal["online", "down", "away"]
    name: str
    is_loaded: bool
    is_loading: bool
    slots: Number
    in_flight: Number
    load_s: Amount | None
    prompt_tokens_per_s: Amount | None
    output_tokens_per_s: Amount | None
    requests: Number
    paused: str | None
    probed_in_s: float | None
    budget: dict[str, Any] | None


class ModelTold(Struct):
    """A model, wherever it is."""

    name: str
    names: list[str]
    digest: str | None
    size_bytes: Number | None
    can: list[str]
    is_cloud: bool
    slots: Number
    in_flight: Number
    waiting: Number
    places: list[PlaceTold]


class ServiceTold(Struct):
    """A service of language models."""

    id: str
    kind: str
    machine: str
    url: str
    is_cloud: bool
    is_managed: bool
    state: Literal["online", "down", "away"]
    reason: str | None
    slots: Number | None
    in_flight: Number
    default: str | None
    workers: list[str]
    models: list[str]


class ModelsTold(Struct):
    """All models and services."""

    models: list[ModelTold]
    services: list[ServiceTold]
    waiting_for_any: Number
    left_out: Number


class MemberTold(Struct):
    """A key that the orchestrator knows, and whose it is."""

    fingerprint: str
    key: str
    standing: Literal["admitted", "waiting", "revoked", "unknown"]
    kind: str
    name: str
    address: str
    worker_ids: list[str]
    since: float | None
    last_seen: float | None
    is_own: bool
    is_connected: bool
    banned_s: Amount | None
    action: str | UnsetType = UNSET


class MembersTold(Struct):
    """All of them, those that wait first, and the orchestrator's own fingerprint."""

    mode: list[str]
    orchestrator: str | None
    waiting: Number
    members: list[MemberTold]
