"""A task as a coroutine sees it: a handle that is awaited, streams, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Protocol, TypeAlias

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Stream
from d8mesh.errors import D8Error, TaskCancelledError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.aio.waits import Inbox, Signal
from d8mesh.nodes.client.handle import TaskHandle
from d8mesh.nodes.client.results import Result, is_cancelled_already, readable
from d8mesh.nodes.client.stream_buffer import NOTHING_KEPT, KeptOutput
from d8mesh.nodes.client.streams import Missed, Position
from d8mesh.nodes.client.timeouts import DEFAULT_QUESTION_S, bounded, countdown

#: Called with the task once its outcome is there.
OnDone: TypeAlias = "Callable[[AsyncTask], object]"


class AsyncNodeOwner(Protocol):
    """What a task's client is to its handles: as long as there is one, it is not collected."""

    @property
    def node(self) -> AsyncNode:
        """The session on the loop that runs here; see `AsyncClient.node`."""

    @property
    def is_closed(self) -> bool:
        """True once it is closed: nothing can come any more."""


class AsyncTask(TaskHandle):
    """A handle of one task. ``await task`` gives its result, as often as it is awaited.

    Each wait is a wait of its own: cancelling it, or its time-out, leaves the task and all
    other waits alone. `cancel` cancels the task.
    """

    __slots__ = ("__weakref__", "_callbacks", "_client")

    def __init__(self, client: AsyncNodeOwner, submission: Submission, index: int) -> None:
        self._client = client
        self.submission = submission
        self.index = index
        self._callbacks: list[tuple[OnDone, contextvars.Context]] | None = None

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    def done(self) -> bool:
        """Return whether awaiting it returns or raises at once; see `Task.done`."""
        return self.is_known() or self._client.is_closed

    def add_done_callback(
        self, callback: OnDone, *, context: contextvars.Context | None = None
    ) -> None:
        """Have ``callback(task)`` called by the loop, once, as soon as `done` is true."""
        context = contextvars.copy_context() if context is None else context
        if self.done():
            asyncio.get_running_loop().call_soon(callback, self, context=context)
            return
        node = self._client.node
        if self._callbacks is None:
            self._callbacks = []
            node.waits.signal(self.submission, self.index).add_done_callback(self._call_back)
        self._callbacks.append((callback, context))

    def remove_done_callback(self, callback: OnDone) -> int:
        """Take a callback back; return how many times it was there."""
        callbacks = self._callbacks or []
        left = [each for each in callbacks if each[0] != callback]
        count = len(callbacks) - len(left)
        callbacks[:] = left
        return count

    def _call_back(self, signal: Signal) -> None:
        signal.exception()  # of a closed client: said to who waits, not to who is called back
        callbacks, self._callbacks = self._callbacks or [], None
        for callback, context in callbacks:
            signal.get_loop().call_soon(callback, self, context=context)

    async def result(self, timeout: float | None = None) -> Result:
        """As `Task.result`."""
        timeout_s = bounded(timeout)
        if not self.is_known():
            await self.known(timeout_s)
        return self.outcome()

    async def known(self, timeout_s: float | None) -> None:
        """Wait until `is_known`."""
        with self._named():
            await self._client.node.waits.finished(self.submission, self.index, timeout_s)

    async def exception(self, timeout: float | None = None) -> D8Error | None:
        """As `Task.exception`."""
        bounded(timeout)
        try:
            await self.result(timeout)
        except (TaskCancelledError, WaitTimeoutError):
            raise
        except D8Error as error:
            return error
        return None

    async def accepted(self, timeout: float | None = None) -> None:
        """As `Task.wait_accepted`."""
        timeout_s = bounded(timeout)
        with self._named():
            if not self.submission.is_settled:
                await self._client.node.waits.settled(self.submission, timeout_s)
            self.submission.raise_refusal()

    async def status(
        self, timeout: float | None = DEFAULT_QUESTION_S, *, full: bool = False
    ) -> dict[str, Any]:
        """As `Task.status`."""
        timeout = DEFAULT_QUESTION_S if timeout is None else timeout
        await self.accepted(timeout)  # before, nobody knows the task
        return readable(await self._ask("status", timeout, **({"full": True} if full else {})))

    async def _ask(self, what: str, timeout_s: float, **more: object) -> dict[str, Any]:
        with self._named():
            return await self._client.node.ask(what, {"id": self.id, **more}, timeout_s)

    async def cancel(self, timeout: float | None = DEFAULT_QUESTION_S) -> bool:
        """As `Task.cancel`."""
        timeout = DEFAULT_QUESTION_S if timeout is None else timeout
        left_s = countdown(timeout)
        if (is_cancelled := is_cancelled_already(self.submission, self.index)) is not None:
            return is_cancelled
        try:
            await self.accepted(left_s())
        except TaskRejectedError:
            return False
        if (await self._ask("cancel", timeout))["state"] != "cancelled":
            return False
        # Its outcome is on the way: `cancelled` is to be true when this returns.
        with contextlib.suppress(WaitTimeoutError):
            await self.known(left_s())
        return True

    async def stream(self, timeout: float | None = None) -> AsyncIterator[Any]:
        """As `Task.stream`."""
        timeout_s = bounded(timeout)
        node, submission = self._client.node, self.submission
        kept = node.kept_output(self.id) if submission.is_listened else None
        is_whole = kept is not None
        if kept is None:
            if submission.is_listened:
                yield Missed(None)
            await self.accepted(timeout_s)  # before, nobody knows the task
            kept = KeptOutput(has_one_reader=True)
        heard: Inbox[None] = Inbox(node.loop, node.waits)

        def hear(stream: Stream | None) -> None:
            if not is_whole:
                kept.hear(stream)
            if heard.is_empty:  # what was heard is kept, once
                heard.put(None)

        stop = (node.hear if is_whole else node.listen)(self.id, hear)
        position, part = Position(is_whole=is_whole), NOTHING_KEPT
        try:
            while not part.is_over:
                part = kept.read(part.at, 0.0)
                for stream in part.streams:
                    for piece in position.read(stream):
                        yield piece
                if not part.streams and not part.is_over:
                    await heard.next(timeout_s, f"output of {self.id}", self.id)
        finally:
            stop()
        with self._named():
            submission.raise_refusal()
