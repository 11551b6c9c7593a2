"""d8mesh: the machines of a LAN as one pool for LLM and agent tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Client",
    "D8Error",
    "Task",
    "TaskCancelledError",
    "TaskContext",
    "TaskFailedError",
    "TaskRejectedError",
    "WaitTimeoutError",
    "Worker",
    "WrongLoopError",
    "__version__",
]

if TYPE_CHECKING:
    from d8mesh.errors import (
        BrokerUnavailableError,
        D8Error,
        TaskCancelledError,
        TaskFailedError,
        TaskRejectedError,
        WaitTimeoutError,
        WrongLoopError,
    )
    from d8mesh.handlers import TaskContext
    from d8mesh.nodes.client import Client, Task
    from d8mesh.nodes.client.aio import AsyncClient, AsyncTask
    from d8mesh.nodes.worker import Worker

_HOMES = {
    "AsyncClient": "nodes.client.aio",
    "AsyncTask": "nodes.client.aio",
    "Client": "nodes.client",
    "Task": "nodes.client",
    "Worker": "nodes.worker",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use: loading a part must not load the whole."""
    if name not in __all__:
        raise AttributeError(f"module 'd8mesh' has no attribute {name!r}")
    home = "handlers" if name == "TaskContext" else _HOMES.get(name, "errors")
    return getattr(importlib.import_module(f"d8mesh.{home}"), name)
