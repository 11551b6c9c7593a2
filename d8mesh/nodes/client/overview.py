"""What `Client.workers`, `Client.stats`, `Client.models` and `Client.explain` return."""

from __future__ import annotations

from typing import Any, TypedDict


class WorkerInfo(TypedDict):
    """One worker, as the orchestrator knows it.

    worker_id: the id it goes by.
    worker_type: what kind of worker it calls itself, for people.
    status: ``online``, ``busy`` (no slot is free) or ``offline``.
    last_heartbeat: when it was heard last, Unix seconds.
    tasks_completed, tasks_failed: in its lifetime.
    capabilities: ``task_types`` and ``models``, lists of names.
    dialect: how it speaks: ``mesh``, or ``polling`` over REST.
    host, address: its machine's name, and where it connects from.
    status_port: of its status page; None: it has none.
    slots, running: how many tasks it runs at once, and runs now.
    placed: how many more its language-model services answer now, beside the slots.
    stuck: slots that a handler does not give back.
    reason: why it offers less than it could: its language-model service is not there, say.
    """

    worker_id: str
    worker_type: str
    status: str
    last_heartbeat: float | None
    tasks_completed: int
    tasks_failed: int
    capabilities: dict[str, Any]
    dialect: str
    host: str
    address: str
    status_port: int | None
    slots: int
    running: int
    placed: int
    stuck: int
    reason: str | None


class WorkerCounts(TypedDict):
    """Workers: known, not offline, without a free slot, and how many of each worker type."""

    total: int
    online: int
    busy: int
    by_type: dict[str, int]


class TaskCounts(TypedDict):
    """Tasks: all ever, waiting, running, and how the finished ones ended."""

    total: int
    pending: int
    assigned: int
    completed: int
    failed: int
    cancelled: int


class Performance(TypedDict):
    """How many tasks ever completed and failed, and the completed ones in per cent of both."""

    total_completed: int
    total_failed: int
    success_rate: float


class Stats(TypedDict):
    """The whole mesh in numbers."""

    workers: WorkerCounts
    tasks: TaskCounts
    performance: Performance


class ListedPlace(TypedDict):
    """A model at one service.

    service, machine, kind: which service, on which machine, and of which kind it is (``ollama``).
    is_cloud: what is sent there leaves the LAN.
    state: of the service: ``online``, ``down`` (it offers nothing), or ``away``.
    name: what the model is called there.
    is_loaded, is_loading: in memory, or on its way there.
    slots, in_flight: how many requests it answers at once, and answers now.
    load_s, prompt_tokens_per_s, output_tokens_per_s: measured; None: not yet.
    requests: how many it has answered since its worker's start.
    paused: why it gets none until a probe succeeds, which comes in `probed_in_s`; else None.
    budget: what its account still allows, if there is one.
    """

    service: str
    machine: str
    kind: str
    is_cloud: bool
    state: str
    name: str
    is_loaded: bool
    is_loading: bool
    slots: int
    in_flight: int
    load_s: float | None
    prompt_tokens_per_s: float | None
    output_tokens_per_s: float | None
    requests: int
    paused: str | None
    probed_in_s: float | None
    budget: dict[str, Any] | None


class ListedModel(TypedDict):
    """One model, wherever it is.

    name, names: what it is called most, and all that it is called: aliases have one digest.
    can: what it is capable of, in Ollama's words; empty: nobody tells.
    is_cloud: it is in the cloud only.
    slots, in_flight, waiting: over all services; `waiting` are the tasks that ask for it.
    """

    name: str
    names: list[str]
    digest: str | None
    size_bytes: int | None
    can: list[str]
    is_cloud: bool
    slots: int
    in_flight: int
    waiting: int
    places: list[ListedPlace]


class ListedService(TypedDict):
    """A service that answers with language models.

    is_managed: its models can be pulled and removed.
    state: ``online``, ``down`` (it offers nothing: `reason`), ``away`` (no worker reaches it).
    slots: requests that it answers at once, over all its models; None: no such bound.
    workers: those that reach it.
    models: the names of its models.
    """

    id: str
    kind: str
    machine: str
    url: str
    is_cloud: bool
    is_managed: bool
    state: str
    reason: str | None
    slots: int | None
    in_flight: int
    default: str | None
    workers: list[str]
    models: list[str]


class Models(TypedDict):
    """The language models of the mesh, and how many tasks wait for whichever.

    left_out: models of services that are not told of: there are more than 20,000.
    """

    models: list[ListedModel]
    services: list[ListedService]
    waiting_for_any: int
    left_out: int


class ListedRemedy(TypedDict):
    """What would have a task run, in words, and the command of d8mesh that does it, if any."""

    text: str
    command: str | None


class Explanation(TypedDict):
    """Why a task is where it is.

    summary: in one sentence; empty: nothing is in its way.
    waited_s: how long it has waited, of a finished one how long it did; None: not known.
    why: sentences.
    candidates: who could run it, each with its ``state``, in words its ``text``.
    remedies: what would have it run.
    attempts: where its attempts were placed and who else could have had them then.
    ahead: how many of its kind go before it while it is queued; else None.
    ahead_is_more: there may be more.
    """

    task_id: str
    type: str
    state: str
    summary: str
    waited_s: float | None
    why: list[str]
    candidates: list[dict[str, Any]]
    remedies: list[ListedRemedy]
    attempts: list[dict[str, Any]]
    ahead: int | None
    ahead_is_more: bool
