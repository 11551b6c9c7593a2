"""d8mesh: the machines of a LAN as one pool for LLM and agent tasks (``docs/PYTHON.md``)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "ALL_COMPLETED",
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Client",
    "Config",
    "ConfigError",
    "D8Error",
    "DiskLowError",
    "DoneAndNotDone",
    "DrainingError",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "FloodError",
    "ForbiddenError",
    "HandlerError",
    "InvalidTaskError",
    "KeyConflictError",
    "Missed",
    "NodeClosedError",
    "NotAcknowledgedError",
    "OutboxBrokenError",
    "PayloadTooLargeError",
    "ProtocolError",
    "PrunedTaskError",
    "QueueFullError",
    "RESTARTED",
    "Reject",
    "SubmitOptions",
    "Task",
    "TaskCancelledError",
    "TaskContext",
    "TaskError",
    "TaskExecutor",
    "TaskFailedError",
    "TaskFuture",
    "TaskRejectedError",
    "UnknownTaskError",
    "VersionError",
    "WaitTimeoutError",
    "Worker",
    "WorkerError",
    "WrongLoopError",
    "__version__",
    "as_completed",
    "wait",
]

if TYPE_CHECKING:
    from d8mesh.config import Config
    from d8mesh.errors import (
        BrokerUnavailableError,
        ConfigError,
        D8Error,
        DiskLowError,
        DrainingError,
        FloodError,
        ForbiddenError,
        HandlerError,
        InvalidTaskError,
        KeyConflictError,
        NodeClosedError,
        NotAcknowledgedError,
        OutboxBrokenError,
        PayloadTooLargeError,
        ProtocolError,
        PrunedTaskError,
        QueueFullError,
        TaskCancelledError,
        TaskError,
        TaskFailedError,
        TaskRejectedError,
        UnknownTaskError,
        VersionError,
        WaitTimeoutError,
        WorkerError,
        WrongLoopError,
    )
    from d8mesh.handlers import TaskContext
    from d8mesh.handlers.retrying import Reject
    from d8mesh.nodes.client import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        FIRST_EXCEPTION,
        RESTARTED,
        Client,
        DoneAndNotDone,
        Missed,
        SubmitOptions,
        Task,
        TaskExecutor,
        TaskFuture,
        as_completed,
        wait,
    )
    from d8mesh.nodes.client.aio import AsyncClient, AsyncTask
    from d8mesh.nodes.worker import Worker


#: Where the public names live that are no errors.
_HOMES = {
    name: home
    for home, names in {
        "config": "Config",
        "handlers": "TaskContext",
        "handlers.retrying": "Reject",
        "nodes.client": "ALL_COMPLETED FIRST_COMPLETED FIRST_EXCEPTION RESTARTED Client Missed "
        "DoneAndNotDone SubmitOptions Task TaskExecutor TaskFuture as_completed wait",
        "nodes.client.aio": "AsyncClient AsyncTask",
        "nodes.worker": "Worker",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use: loading a part must not load the whole."""
    if name not in __all__:
        raise AttributeError(f"module 'd8mesh' has no attribute {name!r}")
    return getattr(importlib.import_module(f"d8mesh.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
