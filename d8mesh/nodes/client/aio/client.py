"""The client for asyncio: the mesh without threads of one's own.

What may have to wait is awaited, and nothing else differs from `Client`: a submit waits for
room when too much waits already, so a program that submits more than the mesh takes is slowed
down and not filled up. While there is room it does not wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from functools import partial
from typing import Any, Final, Unpack, cast

from d8mesh.config import Config
from d8mesh.edge.installation import config_of, settled
from d8mesh.errors import (
    InvalidTaskError,
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
from d8mesh.nodes.client.farewell import CLOSE_S, INTERRUPTED_S, tell
from d8mesh.nodes.client.handle import ASK_S, LISTED_AT_ONCE, Result, Task, readable
from d8mesh.nodes.client.overview import Stats, WorkerInfo
from d8mesh.nodes.client.submissions import (
    SUBMISSION_TASKS,
    Post,
    SubmitOptions,
    check_key,
    cut,
    encode_data,
    group_of,
    kind_of,
    model_of,
    refuse_listening,
)
from d8mesh.nodes.client.timeouts import bounded, countdown, told_whole
from d8mesh.nodes.reconnector.search import checked

#: How many tasks of one `map` are in flight: enough that no worker waits for the next ones.
IN_FLIGHT: Final = 20_000
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
        url: ``http://HOST:PORT`` of an orchestrator; None: found by mDNS.
        config: settings; None: read from the environment (D8_MESH, ORCHESTRATOR_URL, …).
        endpoint: ``tcp://HOST:PORT`` of a broker, if that is known.

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
            error.add_note(f"d8mesh: {missing}")
            tell(missing)

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
        """Submit one task and return its handle; its id is final, its acknowledgement on its way.

        Waits only while there is no room, and with a key.

        Args:
            type: which handler is to run it.
            data: a JSON object: text keys, 64-bit integers, finite floats.
            idempotency_key: the same key and body give the same task (1 to 128 characters);
                waits for the acknowledgement, which says which task that is.
            options: see `SubmitOptions`.

        Raises:
            InvalidTaskError: `data` or an option is not as described.
            PayloadTooLargeError: `data` is larger than 32 MB.
            WaitTimeoutError: there was no room within `timeout`.
        """
        node = self.node
        data = {} if data is None else data
        payload = encode_data(data)
        kind = kind_of(type, model_of(type, data), options)
        timeout_s = options.get("timeout")
        if not idempotency_key:
            is_listened = bool(options.get("listen"))
            place = await node.append(kind, payload, timeout_s, is_listened=is_listened)
            return AsyncTask(self, *place)
        check_key(idempotency_key)
        left_s = countdown(timeout_s)
        post = Post(idempotency_key, is_listened=bool(options.get("listen")))
        submission = await node.enqueue([group_of(kind, [payload])], timeout_s, post)
        await node.waits.settled(submission, left_s())
        return AsyncTask(self, submission, 0)

    async def call(
        self, type: str, data: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> Result:
        """Submit one task and wait for its result: `submit` and `AsyncTask.result` in one.

        Args:
            type, data: as of `submit`.
            options: as of `submit`, but `timeout` is how long to wait for the result.

        Raises:
            As of `submit` and of `AsyncTask.result`. After a `WaitTimeoutError`, which names the
            task, it goes on if the orchestrator has it by then; `task` opens it.
        """
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
        """Submit many tasks of one type; return their handles once all are acknowledged.

        Raises:
            TaskRejectedError: a part was refused; the other parts may have been accepted.
            Others as of `submit`.
        """
        node, timeout_s = self.node, options.get("timeout")
        left_s = countdown(timeout_s)
        kind_of(type, "", options)  # said before the first is taken
        submissions = []
        portion: list[Mapping[str, Any]] = []
        post = Post(is_listened=bool(options.get("listen")))

        async def enqueue() -> None:
            for model, payloads in cut(type, portion):
                group = group_of(kind_of(type, model, options), payloads)
                submissions.append(await node.enqueue([group], left_s(), post))
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
            raise told_whole(error, timeout_s) from None
        return [
            AsyncTask(self, submission, at)
            for submission in submissions
            for at in range(submission.count)
        ]

    def map(
        self, type: str, datas: Iterable[Any] | AsyncIterable[Any], **options: Unpack[MapOptions]
    ) -> AsyncIterator[Result | TaskError]:
        """Submit a task for each of `datas`, as they are taken; yield the results in order.

        The source may be longer than memory: it is read ahead by `in_flight` tasks. When the
        results end early, by an error or because nobody takes them, what is in flight is
        cancelled.

        Raises:
            Whatever `AsyncTask.result` raises, at the first task that did not succeed (without
            `return_exceptions`); what the source raises, after what came before it.
            WaitTimeoutError: `timeout` is over.
        """
        timeout_s = options.pop("timeout", None)
        return_exceptions = options.pop("return_exceptions", False)
        in_flight = options.pop("in_flight", IN_FLIGHT)
        each_as = cast(SubmitOptions, options)
        refuse_listening(each_as)
        kinds = {"": kind_of(type, "", each_as)}
        if in_flight.__class__ is not int or in_flight < 1:
            raise InvalidTaskError(f"in_flight: saw {in_flight!r:.80}, expected 1 or more")
        left_s = countdown(timeout_s)
        node = self.node

        async def submit(data: Any) -> AsyncTask:
            payload = encode_data(data)
            model = model_of(type, data)
            kind = kinds.get(model)
            if kind is None:
                kind = kinds[model] = kind_of(type, model, each_as)
            return AsyncTask(self, *await node.append(kind, payload, None))

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
        """Wait until everything submitted so far is acknowledged.

        Raises:
            TaskRejectedError: a part of what was submitted since the last flush was refused.
            WaitTimeoutError: `timeout` is over.
        """
        await self.node.waits.flush(timeout)

    # -------------------------------------------------------------------- the others

    def task(self, task_id: str | Task | AsyncTask) -> AsyncTask:
        """Return a handle of a task that was submitted anywhere.

        Args:
            task_id: its id, or another handle of it.

        Raises:
            UnknownTaskError: that is no id of a task (InvalidTaskError: and no text).
        """
        known = task_id.id if isinstance(task_id, (Task, AsyncTask)) else task_id
        return AsyncTask(self, *self.node.watch(known))

    async def tasks(
        self,
        *,
        state: str | None = "",
        type: str | None = "",
        newest_first: bool = False,
        timeout: float | None = ASK_S,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the status bodies of tasks, as `AsyncTask.status` returns them.

        Args:
            state: queued, delayed, running, completed, failed, cancelled; empty: all.
            type: of one task type only; empty: of all.
            newest_first: those that were submitted last come first; else the oldest do.
            timeout: of each page.

        Raises:
            InvalidTaskError: there is no such state.
            BrokerUnavailableError: no answer within `timeout`.
        """
        ask = partial(self.ask, "tasks", timeout=timeout)
        wanted = {"state": state or "", "type": type or "", "limit": LISTED_AT_ONCE, "cursor": ""}
        wanted |= {"order": "newest"} if newest_first else {}
        while True:
            page = await ask(wanted)
            for body in page["tasks"]:
                yield readable(body)
            wanted["cursor"] = page["next_cursor"] or ""
            if not wanted["cursor"]:
                return

    async def replay(self, task_id: str, *, timeout: float | None = ASK_S) -> AsyncTask:
        """Submit a failed or cancelled task anew, under a new id; return its handle.

        Raises:
            InvalidTaskError: it is not finished, completed, or its data is lost.
            UnknownTaskError: the orchestrator does not know it, or no longer.
            BrokerUnavailableError: no answer within `timeout`.
        """
        session, n = self.node.next_id()
        args = {"id": task_id, "session": session, "n": n}
        return self.task(str((await self.ask("replay", args, timeout=timeout))["task_id"]))

    async def workers(self, *, timeout: float | None = ASK_S) -> list[WorkerInfo]:
        """Return the workers that the orchestrator knows, offline ones too.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        return list((await self.ask("workers", {}, timeout=timeout))["workers"])

    async def stats(self, *, timeout: float | None = ASK_S) -> Stats:
        """Return how many workers and tasks there are, and how the tasks ended.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        return cast(Stats, await self.ask("stats", {}, timeout=timeout))

    async def ask(
        self, what: str, args: Mapping[str, object], *, timeout: float | None = ASK_S
    ) -> dict[str, Any]:
        """Ask the orchestrator something (see ``docs/PROTOCOL.md``, Questions).

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout`.
        """
        return await self.node.ask(what, args, ASK_S if timeout is None else timeout)

    @property
    def is_closed(self) -> bool:
        """True once it is closed: nothing can come any more."""
        return self._node.is_closed if self._node is not None else self._is_closed

    @property
    def is_connected(self) -> bool:
        """True while an orchestrator answers."""
        return self._node is not None and self._node.is_connected

    @property
    def is_over_http(self) -> bool:
        """True while only the REST port can be reached."""
        return self._node is not None and self._node.is_over_http

    async def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        return await self.node.wait_connected(timeout)

    async def close(self, timeout: float | None = CLOSE_S) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and let all go.

        ``async with`` calls it at its end. Whoever still waits for something gets a
        `NodeClosedError`; tasks go on.

        Raises:
            NotAcknowledgedError: not all was acknowledged within `timeout`, or it was refused and
                nobody was told so; it has the ids.
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
        if node.is_forked:
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
