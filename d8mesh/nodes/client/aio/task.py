"""A task as a coroutine sees it: a handle that is awaited, streams, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE, FAILED_STATE, Stream
from d8mesh.errors import D8Error, TaskCancelledError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.aio.waits import Inbox, Signal
from d8mesh.nodes.client.handle import ASK_S, Result, readable, result_of
from d8mesh.nodes.client.keeping import KeptOutput, Missed, Position
from d8mesh.nodes.client.timeouts import bounded, countdown

if TYPE_CHECKING:
    from d8mesh.nodes.client.aio.client import AsyncClient

#: Called with the task once its outcome is there.
OnDone: TypeAlias = "Callable[[AsyncTask], object]"


class AsyncTask:
    """A handle of one task. ``await task`` gives its result, as often as it is awaited.

    Each wait is a wait of its own: cancelling it, or its time-out, leaves the task and all
    other waits alone. `cancel` cancels the task.
    """

    __slots__ = ("__weakref__", "_callbacks", "_client", "_index", "_submission")

    def __init__(self, client: AsyncClient, submission: Submission, index: int) -> None:
        self._client = client
        self._submission = submission
        self._index = index
        self._callbacks: list[tuple[OnDone, contextvars.Context]] | None = None

    @property
    def id(self) -> str:
        """The task's id, final from the start; it opens the task in any other process."""
        return self._submission.task_id(self._index)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the orchestrator says of the submit: that no worker offers the type, say.

        Empty before the acknowledgement.
        """
        return self._submission.warnings

    def __repr__(self) -> str:
        return f"<AsyncTask {self.id}>"

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    def done(self) -> bool:
        """Return whether awaiting it returns or raises at once.

        It does when the outcome has arrived here, when the submit was refused, and when the
        client is closed: then nothing will arrive any more.
        """
        return self.is_known() or self._client.is_closed

    def is_known(self) -> bool:
        """Return whether the outcome has arrived here, or will not because it was refused."""
        return bool(self._submission.states[self._index]) or self._submission.refusal is not None

    def cancelled(self) -> bool:
        """Return whether it is known here that the task was cancelled."""
        return self._submission.states[self._index] == CANCELLED_STATE

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
            node.waits.signal(self._submission, self._index).add_done_callback(self._call_back)
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
        """Wait for the recorded result and return it: an object with ``success`` true.

        Raises:
            TaskFailedError: the task failed; the error carries its ``result``.
            TaskCancelledError: the task was cancelled.
            TaskRejectedError: the submit was refused; nothing was accepted.
            UnknownTaskError: the orchestrator does not know the task.
            WaitTimeoutError: `timeout` is over; the task goes on.
            NodeClosedError: the client is closed, and the outcome had not arrived.
        """
        timeout_s = bounded(timeout)
        if not self.is_known():
            await self.known(timeout_s)
        return self.outcome()

    async def known(self, timeout_s: float | None) -> None:
        """Wait until `is_known`."""
        with self._named():
            await self._client.node.waits.finished(self._submission, self._index, timeout_s)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error out of this names the task."""
        try:
            yield
        except D8Error as error:
            error.task_id = self.id
            raise

    def outcome(self) -> Result:
        """Return, or raise, what is known to have come of the task; see `result`."""
        submission, index = self._submission, self._index
        if submission.refusal is not None:
            with self._named():
                submission.raise_refusal()
        return result_of(submission.states[index], submission.payloads[index] or b"", self.id)

    async def exception(self, timeout: float | None = None) -> D8Error | None:
        """Wait for the outcome; return what `result` raises, None if it returns.

        Raises:
            TaskCancelledError: the task was cancelled.
            WaitTimeoutError: `timeout` is over; the task goes on.
            InvalidTaskError: `timeout` is no number of seconds.
        """
        bounded(timeout)
        try:
            await self.result(timeout)
        except (TaskCancelledError, WaitTimeoutError):
            raise
        except D8Error as error:
            return error
        return None

    async def accepted(self, timeout: float | None = None) -> None:
        """Wait until the task is acknowledged: safely on the orchestrator's disk.

        Raises:
            TaskRejectedError: the submit was refused.
            WaitTimeoutError: `timeout` is over.
        """
        timeout_s = bounded(timeout)
        with self._named():
            if not self._submission.is_settled:
                await self._client.node.waits.settled(self._submission, timeout_s)
            self._submission.raise_refusal()

    async def status(self, timeout: float | None = ASK_S, *, full: bool = False) -> dict[str, Any]:
        """Return the documented status body, as ``GET /api/tasks/status/{id}`` does.

        Args:
            full: with ``data``, the task's input, and ``history``, all that went wrong so far.

        Raises:
            TaskRejectedError: the submit was refused.
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
        """
        timeout = ASK_S if timeout is None else timeout
        await self.accepted(timeout)  # before, nobody knows the task
        return readable(await self._ask("status", timeout, **({"full": True} if full else {})))

    async def _ask(self, what: str, timeout_s: float, **more: object) -> dict[str, Any]:
        with self._named():
            return await self._client.ask(what, {"id": self.id, **more}, timeout=timeout_s)

    async def cancel(self, timeout: float | None = ASK_S) -> bool:
        """Cancel the task, also a running one; return whether it is cancelled now.

        False: it had ended otherwise before. A running handler is told (`TaskContext`), and what
        it still returns is dropped.

        Raises:
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
            NodeClosedError: the client is closed.
        """
        timeout = ASK_S if timeout is None else timeout
        left_s = countdown(timeout)
        if self._submission.refusal is not None:
            return False
        state = self._submission.states[self._index]
        if state in (COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE):
            return state == CANCELLED_STATE
        try:
            await self.accepted(left_s())
        except TaskRejectedError:
            return False
        answer = await self._ask("cancel", timeout)
        if answer["state"] != "cancelled":
            return False
        # Its outcome is on the way: `cancelled` is to be true when this returns.
        with contextlib.suppress(WaitTimeoutError):
            await self.known(left_s())
        return True

    async def stream(self, timeout: float | None = None) -> AsyncIterator[Any]:
        """Yield partial output as it comes, until the task is finished.

        Of a task that was submitted with ``listen=True`` from the first piece on.

        Yields:
            Texts or JSON values as the handler emitted them; `RESTARTED` when a new
            attempt begins; a `Missed` where pieces are missing.

        Raises:
            WaitTimeoutError: nothing came for `timeout`.
        """
        timeout_s = bounded(timeout)
        kept = self._client.node.kept_output(self.id) if self._submission.is_listened else None
        if kept is not None:
            async for piece in self._kept_output(kept, timeout_s):
                yield piece
            return
        if self._submission.is_listened:
            yield Missed(None)
        await self.accepted(timeout_s)  # before, nobody knows the task
        node = self._client.node
        heard: Inbox[Stream | None] = Inbox(node.loop, node.waits)
        stop, position = node.listen(self.id, heard.put), Position(is_whole=False)
        try:
            while True:
                stream = await heard.next(timeout_s, f"output of {self.id}", self.id)
                if stream is None:
                    return
                for piece in position.read(stream):
                    yield piece
        finally:
            stop()

    async def _kept_output(self, kept: KeptOutput, timeout_s: float | None) -> AsyncIterator[Any]:
        node, position, at = self._client.node, Position(is_whole=True), 0
        rung: Inbox[None] = Inbox(node.loop, node.waits)

        def ring(stream: Stream | None) -> None:
            if rung.is_empty:  # what was heard is kept, once
                rung.put(None)

        stop = node.hear(self.id, ring)
        try:
            while True:
                at, streams, is_over = kept.read(at, 0.0)
                for stream in streams:
                    for piece in position.read(stream):
                        yield piece
                if is_over:
                    break
                if not streams:
                    await rung.next(timeout_s, f"output of {self.id}", self.id)
        finally:
            stop()
        with self._named():
            self._submission.raise_refusal()
