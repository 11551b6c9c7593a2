"""The Python client of a mesh, the handles of its tasks, and what waits for many of them."""

from d8mesh.nodes.client.client import Client
from d8mesh.nodes.client.executor import TaskExecutor, TaskFuture
from d8mesh.nodes.client.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    DoneAndNotDone,
    as_completed,
    wait,
)
from d8mesh.nodes.client.groups import SubmitOptions
from d8mesh.nodes.client.handle import Task
from d8mesh.nodes.client.results import Result
from d8mesh.nodes.client.streams import RESTARTED, Missed, Restarted

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
