"""Tasks of one type as a `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from d8mesh.errors import InvalidTaskError, TaskCancelledError, error_of
from d8mesh.nodes.client.completion_waiters import LOOK_AROUND_S
from d8mesh.nodes.client.handle import Task
from d8mesh.nodes.client.node import ClientNode
from d8mesh.nodes.client.results import Result

#: How long `shutdown` waits for the orchestrator to hear what is cancelled.
SHUTDOWN_CANCEL_S: Final = 10.0

_T = TypeVar("_T")


class TaskFuture(concurrent.futures.Future[Result]):
    """A future of `concurrent.futures`, and the task behind it.

    It is pending until the task has ended; its result is that of `Task.result`.
    """

    #: the handle: its id, status, partial output
    task: Task

    def result(self, timeout: float | None = None) -> Result:
        """As of every future; D8Error: a callback of the client would wait here, for ever."""
        return self._seen(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As of every future; D8Error: a callback of the client would wait here, for ever."""
        return self._seen(super().exception, timeout)

    def _seen(self, look: Callable[[float | None], _T], timeout_s: float | None) -> _T:
        if not self.done():
            self.task.node.check_is_elsewhere()
        try:
            return look(timeout_s)
        finally:
            if self.task.submission.refusal is not None:
                self.task.submission.is_told |= self.done()


class TaskExecutor(concurrent.futures.Executor):
    """Runs tasks of one type; `Client.executor` makes it.

    The work is done by the type's handler on a worker, so ``fn`` cannot be the work: it makes
    the *data* of the task. It is called at once, by the thread that submits, and what it returns
    is sent: ``submit(dict, path="a.jpg")``, ``map(lambda path: {"path": path}, paths)``. Without
    an ``fn`` the data is given itself: ``submit({"path": "a.jpg"})``, ``submit(path="a.jpg")``,
    ``submit(None, {"path": "a.jpg"})``, ``map(None, datas)``.

    Args:
        node: the client's; `shutdown` does not close it.
        submit: submits a task of the type with this data.

    Thread: any.
    """

    def __init__(self, node: ClientNode, submit: Callable[[Mapping[str, Any]], Task]) -> None:
        self._node, self._submit = node, submit
        self._changed = threading.Condition(threading.Lock())
        self._unfinished: set[TaskFuture] = set()
        self._is_shut = False

    def submit(self, fn: object = None, /, *args: Any, **kwargs: Any) -> TaskFuture:  # type: ignore[override]
        """Submit one task; return its future.

        Args:
            fn: a callable that makes the data of ``*args`` and ``**kwargs``; or the data; or
                None.
            args, kwargs: for `fn`. Without one: the data, and fields that are added to it.

        Raises:
            RuntimeError: after `shutdown`.
            InvalidTaskError: that makes no data.
            Others as of `Client.submit`.
        """
        data = _data_of(fn, args, kwargs)
        future = TaskFuture()
        with self._changed:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._unfinished.add(future)
        try:
            future.task = task = self._submit(data)
        except BaseException:
            self._finished(future)
            raise
        # First, before anybody else's: it tells those who wait that the future was cancelled.
        future.add_done_callback(self._ended)
        task.add_done_callback(lambda task: _pass_on(task, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; the client stays open.

        Args:
            wait: until all futures are done.
            cancel_futures: cancel those that are not done, running ones too.
        """
        with self._changed:
            self._is_shut = True
            unfinished = list(self._unfinished)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if not wait:
            return
        with self._changed:
            while self._unfinished:
                self._changed.wait(LOOK_AROUND_S)
        if cancel_futures:
            self._node.wait_dropped(SHUTDOWN_CANCEL_S)

    def _ended(self, future: concurrent.futures.Future[Result]) -> None:
        assert isinstance(future, TaskFuture)
        if future.cancelled():
            future.set_running_or_notify_cancel()  # now `concurrent.futures.wait` sees it too
            self._node.drop(future.task.submission, future.task.index)
        self._finished(future)

    def _finished(self, future: TaskFuture) -> None:
        with self._changed:
            self._unfinished.discard(future)
            if not self._unfinished:
                self._changed.notify_all()


def _pass_on(task: Task, future: TaskFuture) -> None:
    """The task is done: so is the future, unless that was cancelled before."""
    refusal = task.submission.refusal
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if refusal is not None:  # nobody is told by this: whoever looks at the future is
            refused = error_of(refusal.code, refusal.message)
            refused.task_id = task.id
            future.set_exception(refused)
            return
        try:
            result = task.result(0)
        except TaskCancelledError:
            future.cancel()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _data_of(fn: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Return the data of a task.

    Raises:
        InvalidTaskError: there is none in what was given.
    """
    if callable(fn) and not isinstance(fn, Mapping):
        data = fn(*args, **kwargs)
        if not isinstance(data, Mapping):
            raise InvalidTaskError(
                f"{getattr(fn, '__name__', fn)!r:.80} returned {type(data).__name__}, expected a "
                "dict: a function that is submitted here makes the data, the work is done by the "
                "handler on a worker"
            )
        return data
    parts = [*([] if fn is None else [fn]), *args]
    if len(parts) > 1 or not all(isinstance(part, Mapping) for part in parts):
        seen = ", ".join(type(part).__name__ for part in parts)
        raise InvalidTaskError(
            f"submit: saw {seen}, expected one dict, or fields by their names, or a function that "
            "makes a dict of the arguments"
        )
    data = parts[0] if parts else {}
    return {**data, **kwargs} if kwargs else data
