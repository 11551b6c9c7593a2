"""What `Client.workers` and `Client.stats` return."""

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
    stuck: slots that a handler does not give back.
    reason: why it can less than it could, as for want of a language model; None: it does not.
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
