"""What a worker can do with a task, and what a handler is given to do it.

A handler is ``handler(data, context) -> value`` (sync or async); `data` is the task's
JSON object. What it returns becomes ``{"success": true, "output": value}`` unless it is
an object with a boolean ``success``. An exception is a failed attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from d8mesh.core.protocol.messages import Placement

#: An object of JSON's model: text keys, 64-bit integers, finite floats.
Data = Mapping[str, Any]


class TaskContext(Protocol):
    """What a running handler may ask and tell."""

    @property
    def task_id(self) -> str:
        """The id of the task."""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""

    @property
    def placement(self) -> Placement | None:
        """The LLM service, and the model there, that the orchestrator chose for this attempt.

        None for types that services do not answer, and from an orchestrator that does not choose.
        """

    @property
    def is_cancelled(self) -> bool:
        """True once the task was cancelled, or its attempt is no longer wanted."""

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline; negative when past."""

    def on_cancel(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called at once when the task is cancelled; return what undoes that.

        For what waits elsewhere and can be woken. `call` must neither wait nor raise: it runs on
        the thread that all of the worker's messages go through.
        """

    def emit(self, chunk: object) -> None:
        """Send partial output, text or a JSON value, to whoever listens right now.

        Raises:
            TaskCancelledError: the task was cancelled: stop.
            InvalidTaskError: it is not of JSON's model; the message names the path.
            PayloadTooLargeError: it is larger than a result may be (32 MB).
        """

    def raise_if_cancelled(self) -> None:
        """Raise `TaskCancelledError` if the task was cancelled."""


Handler = Callable[[Data, TaskContext], object | Awaitable[object]]
