"""Many tasks as a stream: fed from any iterable with a bound in flight, taken as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from d8mesh.errors import NodeClosedError, TaskError, WaitTimeoutError
from d8mesh.nodes.client.aio.task import AsyncTask
from d8mesh.nodes.client.results import Result
from d8mesh.nodes.client.timeouts import told_whole

Datas: TypeAlias = "Iterable[dict[str, Any]] | AsyncIterable[dict[str, Any]]"
Submitting: TypeAlias = Callable[[Any], Awaitable[AsyncTask]]


async def each_of(datas: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Yield what any iterable has."""
    if isinstance(datas, AsyncIterable):
        async for data in datas:
            yield data
    else:
        for data in datas:
            yield data


class Feed:
    """Submits what an iterable yields, never more at once than a bound, on a task of its own.

    So a source that is waited for holds up no result, nor a result the source.

    Args:
        datas: the source.
        submit: submits one.
        most: how many tasks may be in flight, or finished and not taken.
        keeps_errors: an error takes the place of a task that could not be submitted.
    """

    def __init__(self, datas: Datas, submit: Submitting, most: int, *, keeps_errors: bool) -> None:
        self._datas, self._submit, self._most = datas, submit, most
        self.keeps_errors = keeps_errors
        self._tasks: deque[AsyncTask | TaskError] = deque()
        self._changed = asyncio.Event()  #: there is a task, or the end
        self._has_room = asyncio.Event()
        self.feeder = asyncio.create_task(self._feed(), name="d8-feed")
        self.feeder.add_done_callback(lambda _: self._changed.set())

    async def take(self, timeout_s: float | None) -> AsyncTask | TaskError | None:
        """Return the next task in its order; None: that was all.

        Raises:
            NodeClosedError: the client was closed.
            WaitTimeoutError: there was none within `timeout_s`.
            Whatever the source raised, after all that came before it.
        """
        while not self._tasks:
            if self.feeder.cancelled():
                raise NodeClosedError
            if self.feeder.done():
                self.feeder.result()
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                text = f"the next of the data has not come within {timeout_s:g} s"
                raise WaitTimeoutError(text) from None
        return self._pop()

    def take_now(self) -> AsyncTask | TaskError | None:
        """Return the next task; None: it has to be waited for, or there is none."""
        return self._pop() if self._tasks else None

    def _pop(self) -> AsyncTask | TaskError:
        task = self._tasks.popleft()
        if len(self._tasks) == self._most // 2:  # in portions: each waking costs
            self._has_room.set()
        return task

    def left(self) -> list[AsyncTask]:
        """Take nothing more from the source; return the tasks that nobody has taken."""
        self.feeder.cancel()
        return [task for task in self._tasks if isinstance(task, AsyncTask) and not task.done()]

    async def _feed(self) -> None:
        async for data in each_of(self._datas):
            try:
                self._tasks.append(await self._submit(data))
            except TaskError as error:
                if not self.keeps_errors:
                    raise
                self._tasks.append(error)
            self._changed.set()
            while len(self._tasks) >= self._most:
                self._has_room.clear()
                await self._has_room.wait()


async def results_of(
    feed: Feed,
    left_s: Callable[[], float | None],
    timeout_s: float | None,
    drop: Callable[[list[AsyncTask]], None],
) -> AsyncIterator[Result | TaskError]:
    """Yield the results of what is fed, in order; `drop` gets what is left when that ends early."""
    task: AsyncTask | TaskError | None = None
    try:
        while True:
            try:
                task = feed.take_now() or await feed.take(left_s())
                if task is None:
                    return
                if isinstance(task, AsyncTask) and not task.is_known():
                    await task.known(left_s())
                result = _outcome_of(task, keeps_errors=feed.keeps_errors)
            except WaitTimeoutError as error:
                raise told_whole(error, timeout_s) from None
            task = None  # what was delivered is forgotten here
            yield result
    finally:
        left = feed.left()
        if isinstance(task, AsyncTask) and not task.done():
            left.append(task)
        if left:
            drop(left)


def _outcome_of(task: AsyncTask | TaskError, *, keeps_errors: bool) -> Result | TaskError:
    if isinstance(task, TaskError):
        return task
    try:
        return task.outcome()
    except TaskError as error:
        if not keeps_errors:
            raise
        return error
