"""The client for asyncio: the mesh without threads of one's own.

What may have to wait is awaited, and nothing else differs from `Client`: a submit waits for
room when too much waits already, so a program that submits more than the mesh takes is slowed
down and not filled up. While there is room it does not wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any, Final, Unpack, cast

from d8mesh.config import Config
from d8mesh.edge.installation import config_of, settled
from d8mesh.errors import (
    NodeClosedError,
    NotAcknowledgedError,
    TaskError,
    WaitTimeoutError,
    WrongLoopError,
)
from d8mesh.nodes.client.aio.flow import Feed, each_of, results_of
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.aio.task import AsyncTask
from d8mesh.nodes.client.aio.waits import Inbox
from d8mesh.nodes.client.closing import CLOSE_S, INTERRUPTED_S, note_missing
from d8mesh.nodes.client.groups import (
    SUBMISSION_TASKS,
    SubmitOptions,
    Template,
    check_key,
    encode_data,
    filled,
    group_of,
    refuse_listening,
)
from d8mesh.nodes.client.handle import Task
from d8mesh.nodes.client.mapping import window_of
from d8mesh.nodes.client.overview import Explanation, Models, Stats, WorkerInfo
from d8mesh.nodes.client.results import Listing, Result
from d8mesh.nodes.client.timeouts import DEFAULT_QUESTION_S, bounded, countdown, told_whole
from d8mesh.nodes.client.wishes import wish_of
from d8mesh.nodes.reconnector.search import checked

#: Tasks that nobody wants any more are cancelled so many at once.
CANCELLED_AT_ONCE: Final = 64


class MapOptions(SubmitOptions, total=False):
    """How the tasks of a `map` are to be run; all of it may be left out.

    timeout: how long all of it may take (as long as needed).
    return_exceptions: yield the error of a task that did not succeed, in the result's place (no).
    in_flight: how many tasks may be in flight, or finished and not yet taken (20,000).
    """

    return_exceptions: bool
    in_flight: int


class AsyncClient:
    """A client of one mesh, for the coroutines of one event loop.

    Args:
        url, config, endpoint: as of `Client`.

    It begins with ``async with``, or with its first use. Every method raises `WrongLoopError`
    when it is called from elsewhere than the event loop in which it began, and
    `NodeClosedError` after `close`.

    Raises:
        ConfigError: `url` or `endpoint` is not of that form.
    """

    def __init__(
        self, url: str | None = None, *, config: Config | None = None, endpoint: str | None = None
    ) -> None:
        self._node: AsyncNode | None = None
        self._is_closed = False
        config = config_of(os.environ) if config is None else settled(config)
        self._config, self._url = config, checked(url, endpoint) or config.orchestrator_url
        self._endpoint = endpoint
        self._feeders: set[asyncio.Task[None]] = set()
        self._dropping: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> AsyncClient:
        _ = self.node
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        is_hurried = isinstance(error, (KeyboardInterrupt, asyncio.CancelledError))
        try:
            await self.close(INTERRUPTED_S if is_hurried else CLOSE_S)
        except NotAcknowledgedError as missing:
            if error is None:
                raise
            note_missing(error, missing)

    def __del__(self) -> None:
        if self._node is not None and not self._is_closed:
            self._node.abandon()

    @property
    def node(self) -> AsyncNode:
        """The session on the loop; begun, if it was not.

        Raises:
            NodeClosedError: the client is closed.
            WrongLoopError: this is not a coroutine of its loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            text = "no event loop runs here: an AsyncClient is for coroutines, a Client for others"
            raise WrongLoopError(text) from None
        node = self._node
        if node is not None and node.loop is not loop:
            raise WrongLoopError(
                "this AsyncClient began in another event loop: make one in each, and use it there"
            )
        if self._is_closed:
            raise NodeClosedError
        if node is None:
            node = self._node = AsyncNode(self._config, endpoint=self._endpoint, url=self._url)
        return node

    # ------------------------------------------------------------------- submitting

    async def submit(
        self,
        type: str,
        data: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncTask:
        """As `Client.submit`; waits only while there is no room, and with a key."""
        node = self.node
        data = {} if data is None else data
        payload = encode_data(data)
        shared = group_of(type, wish_of(type, data, is_one=True), options)
        timeout_s, is_listened = options.get("timeout"), bool(options.get("listen"))
        if not idempotency_key:
            place = await node.append(shared, payload, timeout_s, is_listened=is_listened)
            return AsyncTask(self, *place)
        check_key(idempotency_key)
        left_s = countdown(timeout_s)
        submission = await node.enqueue(
            [filled(shared, [payload])], timeout_s, key=idempotency_key, is_listened=is_listened
        )
        await node.waits.settled(submission, left_s())
        return AsyncTask(self, submission, 0)

    async def call(
        self, type: str, data: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> Result:
        """As `Client.call`."""
        refuse_listening(options)
        timeout_s = options.get("timeout")
        left_s = countdown(timeout_s)
        task = await self.submit(type, data, **options)
        try:
            return await task.result(left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None

    async def submit_many(
        self,
        type: str,
        datas: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncTask]:
        """As `Client.submit_many`."""
        node, template = self.node, Template(type, options)
        left_s = countdown(template.timeout_s)
        submissions = []
        portion: list[Mapping[str, Any]] = []

        async def enqueue() -> None:
            for group in template.cut(portion):
                submissions.append(
                    await node.enqueue([group], left_s(), is_listened=template.is_listened)
                )
            portion.clear()
            await asyncio.sleep(0)  # a long run of submits lets others in between

        try:
            async for data in each_of(datas):
                portion.append(data)
                if len(portion) == SUBMISSION_TASKS:
                    await enqueue()
            await enqueue()
            for submission in submissions:
                await node.waits.settled(submission, left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, template.timeout_s) from None
        return [
            AsyncTask(self, submission, at)
            for submission in submissions
            for at in range(submission.count)
        ]

    def map(
        self, type: str, datas: Iterable[Any] | AsyncIterable[Any], **options: Unpack[MapOptions]
    ) -> AsyncIterator[Result | TaskError]:
        """As `Client.map`, but the tasks are submitted as their results are taken.

        The source may be longer than memory: it is read ahead by `in_flight` tasks. What it raises
        comes after what came before it.
        """
        timeout_s = options.pop("timeout", None)
        return_exceptions = options.pop("return_exceptions", False)
        in_flight = window_of(options.pop("in_flight", None))
        each_as = cast(SubmitOptions, options)
        refuse_listening(each_as)
        template = Template(type, each_as)
        left_s = countdown(timeout_s)
        node = self.node

        async def submit(data: Any) -> AsyncTask:
            return AsyncTask(self, *await node.append(*template.of(data), None))

        feed = Feed(datas, submit, in_flight, keeps_errors=return_exceptions)
        self._feeders.add(feed.feeder)
        feed.feeder.add_done_callback(self._feeders.discard)
        return results_of(feed, left_s, timeout_s, self._drop)

    def _drop(self, tasks: list[AsyncTask]) -> None:
        """Cancel tasks that nobody wants any more, without having anybody wait for it."""
        if self._is_closed or self._node is None or self._node.loop.is_closed():
            return
        dropping = self._node.loop.create_task(_cancel_all(tasks), name="d8-drop")
        self._dropping.add(dropping)
        dropping.add_done_callback(self._dropping.discard)

    async def as_completed(
        self, tasks: Iterable[AsyncTask], *, timeout: float | None = None
    ) -> AsyncIterator[AsyncTask]:
        """Yield tasks as their outcomes arrive, each once.

        Raises:
            WaitTimeoutError: not all have come within `timeout`.
        """
        timeout_s, left_s = bounded(timeout), countdown(timeout)
        node = self.node
        finished: Inbox[AsyncTask] = Inbox(node.loop, node.waits)
        waiting = dict.fromkeys(tasks)
        try:
            for task in waiting:
                task.add_done_callback(finished.put)
            while waiting:
                try:
                    task = await finished.next(left_s(), f"the result of {len(waiting)} tasks")
                except WaitTimeoutError as error:
                    raise told_whole(error, timeout_s) from None
                del waiting[task]
                yield task
        finally:
            for task in waiting:
                task.remove_done_callback(finished.put)

    async def flush(self, timeout: float | None = None) -> None:
        """As `Client.flush`."""
        await self.node.waits.flush(timeout)

    # -------------------------------------------------------------------- the others

    def task(self, task_id: str | Task | AsyncTask) -> AsyncTask:
        """As `Client.task`."""
        known = task_id.id if isinstance(task_id, (Task, AsyncTask)) else task_id
        return AsyncTask(self, *self.node.watch(known))

    async def tasks(
        self,
        *,
        state: str | None = "",
        type: str | None = "",
        door: str | None = "",
        newest_first: bool = False,
        timeout: float | None = DEFAULT_QUESTION_S,
    ) -> AsyncIterator[dict[str, Any]]:
        """As `Client.tasks`."""
        listing = Listing(state, type, door, newest_first=newest_first)
        while not listing.is_over:
            for body in listing.bodies(await self.ask("tasks", listing.args, timeout=timeout)):
                yield body

    async def replay(
        self, task_id: str, *, timeout: float | None = DEFAULT_QUESTION_S
    ) -> AsyncTask:
        """As `Client.replay`."""
        session, n = self.node.next_id()
        args = {"id": task_id, "session": session, "n": n}
        return self.task(str((await self.ask("replay", args, timeout=timeout))["task_id"]))

    async def workers(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> list[WorkerInfo]:
        """As `Client.workers`."""
        return list((await self.ask("workers", {}, timeout=timeout))["workers"])

    async def stats(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> Stats:
        """As `Client.stats`."""
        return cast(Stats, await self.ask("stats", {}, timeout=timeout))

    async def models(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> Models:
        """As `Client.models`."""
        return cast(Models, await self.ask("models", {}, timeout=timeout))

    async def explain(
        self, task_id: str, *, timeout: float | None = DEFAULT_QUESTION_S
    ) -> Explanation:
        """As `Client.explain`."""
        return cast(Explanation, await self.ask("explain", {"id": task_id}, timeout=timeout))

    async def ask(
        self, what: str, args: Mapping[str, object], *, timeout: float | None = DEFAULT_QUESTION_S
    ) -> dict[str, Any]:
        """As `Client.ask`."""
        return await self.node.ask(what, args, DEFAULT_QUESTION_S if timeout is None else timeout)

    @property
    def is_closed(self) -> bool:
        """True once it is closed: nothing can come any more."""
        return self._node.is_closed if self._node is not None else self._is_closed

    @property
    def is_connected(self) -> bool:
        """As `Client.is_connected`."""
        return self._node is not None and self._node.is_connected

    @property
    def is_over_http(self) -> bool:
        """As `Client.is_over_http`."""
        return self._node is not None and self._node.runner.is_over_http

    async def wait_connected(self, timeout: float | None = None) -> bool:
        """As `Client.wait_connected`."""
        return await self.node.wait_connected(timeout)

    async def close(self, timeout: float | None = CLOSE_S) -> None:
        """As `Client.close`; ``async with`` calls it at its end.

        Whoever still waits for something gets a `NodeClosedError`; tasks go on.
        """
        timeout_s = bounded(timeout)
        if self._is_closed:
            return
        node = self._node and self.node
        for feeder in list(self._feeders):
            feeder.cancel()
        if node is None:
            self._is_closed = True
            return
        if node.runner.is_forked:
            return
        left_s = countdown(timeout_s)
        try:
            if self._dropping:
                await asyncio.wait(set(self._dropping), timeout=left_s())
        finally:
            self._is_closed = True
            for dropping in list(self._dropping):
                dropping.cancel()
            await node.close(left_s())


async def _cancel_all(tasks: list[AsyncTask]) -> None:
    for begin in range(0, len(tasks), CANCELLED_AT_ONCE):
        cancels = [task.cancel() for task in tasks[begin : begin + CANCELLED_AT_ONCE]]
        await asyncio.gather(*cancels, return_exceptions=True)
