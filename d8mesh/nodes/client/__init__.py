"""The Python client of a mesh, the handles of its tasks, and what waits for many of them."""

from d8mesh.nodes.client.executor import TaskExecutor, TaskFuture
from d8mesh.nodes.client.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    DoneAndNotDone,
    as_completed,
    wait,
)
from d8mesh.nodes.client.handle import RESTARTED, Restarted, Result, Task
from d8mesh.nodes.client.keeping import Missed
from d8mesh.nodes.client.node import Client
from d8mesh.nodes.client.submissions import SubmitOptions

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "RESTARTED",
    "Client",
    "DoneAndNotDone",
    "Missed",
    "Restarted",
    "Result",
    "SubmitOptions",
    "Task",
    "TaskExecutor",
    "TaskFuture",
    "as_completed",
    "wait",
]
