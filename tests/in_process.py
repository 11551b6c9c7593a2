"""A client without a mesh behind it: its tasks are run by the real handlers, in threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from d8mesh.errors import TaskCancelledError, TaskFailedError, WaitTimeoutError
from d8mesh.handlers import Handler
from tests.task_context import Context


class RunningTask:
    """One submitted task; one that nobody can run stays pending."""

    def __init__(self, future: Future[dict[str, Any]], context: Context, reason: str) -> None:
        self._future, self._context, self._reason = future, context, reason

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        try:
            return self._future.result(timeout)
        except TimeoutError:
            raise WaitTimeoutError from None
        except CancelledError:
            raise TaskCancelledError from None

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        return {"status": "pending", "reason": self._reason}

    def cancel(self) -> bool:
        self._context.cancel()
        return self._future.cancel()


class InProcess:
    """Takes tasks and runs them with `handlers`."""

    def __init__(self, handlers: Mapping[str, Handler], *, threads: int = 2) -> None:
        self._handlers = handlers
        self._threads = ThreadPoolExecutor(threads)
        self.tasks: list[RunningTask] = []
        #: (type, data) of each task, in the order of submitting
        self.submitted: list[tuple[str, Mapping[str, Any]]] = []
        self.has_submitted = threading.Event()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self.tasks:
            task.cancel()
        self._threads.shutdown()

    def submit_many(
        self, type: str, datas: Sequence[Mapping[str, Any]], *, timeout: float | None = None
    ) -> list[RunningTask]:
        tasks = [self._submit(type, data) for data in datas]
        self.tasks += tasks
        self.has_submitted.set()
        return tasks

    def _submit(self, kind: str, data: Mapping[str, Any]) -> RunningTask:
        self.submitted.append((kind, data))
        context = Context()
        if kind not in self._handlers:
            return RunningTask(Future(), context, f"no worker in the mesh runs {kind}")
        future = self._threads.submit(self._run, kind, data, context)
        return RunningTask(future, context, "")

    def _run(self, kind: str, data: Mapping[str, Any], context: Context) -> dict[str, Any]:
        try:
            result = self._handlers[kind](data, context)
        except Exception as error:
            raise TaskFailedError(f"{type(error).__name__}: {error}") from error
        assert isinstance(result, dict)
        return result
