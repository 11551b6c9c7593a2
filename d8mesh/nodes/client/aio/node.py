"""A client's session as an asyncio node: the brain, its link and its waits on one event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any, Final

from d8mesh.config import Config
from d8mesh.core.client.submission import Submission, TaskOutcome, awaiting
from d8mesh.core.protocol.messages import Group
from d8mesh.edge.logs import event
from d8mesh.edge.transport.connector import Connector
from d8mesh.errors import BrokerUnavailableError, D8Error, NodeClosedError, WaitTimeoutError
from d8mesh.nodes.client.aio.followed import FollowedTasks
from d8mesh.nodes.client.aio.host import LoopHost
from d8mesh.nodes.client.aio.waits import Signal, Waits, resolve
from d8mesh.nodes.client.closing import (
    CLOSE_S,
    PRINT_AFTER_S,
    missing_of,
    note_missing,
    print_waiting,
    raise_missing,
)
from d8mesh.nodes.client.completion_waiters import log_waiting
from d8mesh.nodes.client.groups import SUBMISSION_TASKS, Sent, filled, size_of
from d8mesh.nodes.client.outputs import listen
from d8mesh.nodes.client.questions import Questions, unanswered
from d8mesh.nodes.client.reasons import Reasons
from d8mesh.nodes.client.runner import ClientRunner, new_session
from d8mesh.nodes.client.stream_buffer import KeptOutput
from d8mesh.nodes.client.streams import OnStream
from d8mesh.nodes.client.submitter import Submitter
from d8mesh.nodes.client.timeouts import DEFAULT_QUESTION_S, bounded
from d8mesh.nodes.credentials import client_keys, credentials_of, web_access
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search

#: How long a look at why something does not come may hold up who is told that it has not.
WHY_S: Final = 2.0
#: How long the end of a loop waits, once that was told, for what nobody waited for.
UNCLOSED_S: Final = CLOSE_S - PRINT_AFTER_S
_log: Final = logging.getLogger("d8mesh.client")


class AsyncNode:
    """One session with one mesh, on the running event loop.

    Args:
        config, endpoint, url: as of `ClientNode`.

    Thread: the loop's. Finding an orchestrator and closing connections happen on threads of
    their own, for they block.
    """

    def __init__(self, config: Config, *, endpoint: str | None, url: str | None) -> None:
        self.loop = asyncio.get_running_loop()
        keys = client_keys(config)
        self._session = new_session(config.mesh, credentials_of(config, keys))
        self._connecting: set[Signal] = set()
        self.waits = Waits(self.loop, self.check_alive, self._why, self._say)
        self._host = LoopHost(self.loop, self._after_turn)
        self._reconnector = Reconnector(
            Search(config, given=endpoint or url),
            Connector(self._host.wake_from_afar, keys=keys, access=web_access(config)),
        )
        self._reasons = Reasons(
            self._session, self._reconnector, self._ask_from_afar, self.check_alive
        )
        self._one_looks = asyncio.Lock()
        #: what drives the session
        self.runner = ClientRunner(self._session, self.waits.waiters, self._host, self._reconnector)
        self.waits.waiters.check_alive = self.runner.check_alive  # without a detour
        self._submitter = Submitter(self.runner)
        self._questions = Questions(self.runner)
        #: tasks whose events are told by calls
        self.followed = FollowedTasks(self.loop, self.runner, self._submitter, self._questions)
        self._host.start(self.runner)
        self._leaving: asyncio.Task[None] | None = None
        self._guard = self._await_loop_end()
        with contextlib.suppress(StopIteration):  # it comes to its `yield` without waiting
            self._guard.__anext__().send(None)

    @property
    def is_closed(self) -> bool:
        """True once nothing can come any more."""
        return self.runner.is_closed

    @property
    def is_connected(self) -> bool:
        """True while an orchestrator answers."""
        return self._session.is_up

    def check_alive(self) -> None:
        """Make sure that something can still come; see `ClientRunner.check_alive`."""
        self.runner.check_alive()

    # ------------------------------------------------------------------- submitting

    async def append(
        self, group: Group, payload: bytes, timeout_s: float | None, *, is_listened: bool = False
    ) -> tuple[Submission, int]:
        """Put one task into the open submission; see `Submitter.append`."""
        if not self.waits.has_room(1, len(payload)):
            await self.waits.room(1, len(payload), timeout_s)
        submission, index = self._submitter.append(
            group, payload, timeout_s, is_listened=is_listened
        )
        if index == SUBMISSION_TASKS - 1:  # a long run of submits lets others in between
            await asyncio.sleep(0)
        return submission, index

    async def enqueue(
        self,
        groups: list[Group],
        timeout_s: float | None,
        *,
        key: str = "",
        is_listened: bool = False,
    ) -> Submission:
        """Submit these as one submission; see `Submitter.enqueue`."""
        self.check_alive()
        await self.waits.room(*size_of(groups), timeout_s)
        return self._submitter.enqueue(groups, timeout_s, key=key, is_listened=is_listened)

    async def submit_groups(
        self,
        groups: list[Group],
        *,
        key: str = "",
        is_listened: bool = False,
        timeout_s: float | None = DEFAULT_QUESTION_S,
    ) -> Sent:
        """Submit all of these or nothing, and wait until it is acknowledged.

        A full queue is not waited for, and no outcomes are wanted.

        Raises:
            TaskRejectedError: refused; nothing was accepted.
            WaitTimeoutError: no answer within `timeout_s`.
        """
        self.check_alive()
        count, size_bytes = size_of(groups)
        await self.waits.room(count, size_bytes, timeout_s)
        index = 0
        if count == 1 and not key and not is_listened:
            # It travels with what others submit at the same time.
            shared, payload = filled(groups[0], []), groups[0].payloads[0]
            submission, index = self._submitter.append(shared, payload, timeout_s, is_watched=False)
        else:
            submission = self._submitter.enqueue(
                groups, timeout_s, key=key, is_watched=False, is_listened=is_listened
            )
        await self.waits.settled(submission, timeout_s)
        ids = [submission.task_id(each) for each in range(index, index + count)]
        return Sent(ids, submission.is_repeat, submission.warnings)

    def next_id(self) -> tuple[str, int]:
        """Return a session and a counter that make an unused task id."""
        return self._submitter.next_id()

    def deliver(self, task_id: str, rest: bytes, keep_s: float = 0.0) -> None:
        """Have what a task asked and answered erased from the orchestrator's disk: it is delivered.

        Told with all others of this turn of the loop, and again until it is acknowledged; a node
        that is closed before that has told it once at least.

        Args:
            rest: what is kept of the result, as msgpack: all but what was said; empty: nothing is.
            keep_s: erased after this time; of a task that is not finished, when it is.
        """
        session = self._session
        self.runner.do(lambda now: session.deliver(task_id, rest, keep_s))

    # ----------------------------------------------------------------------- asking

    def watch(self, task_id: str) -> tuple[Submission, int]:
        """Return where the outcome of anybody's task will arrive; see `Submitter.watch`."""
        self.check_alive()
        return self._submitter.watch(task_id)

    async def outcome_of(self, task_id: str, timeout_s: float | None) -> TaskOutcome | None:
        """Wait for how anybody's acknowledged task ends; None: it has not within `timeout_s`."""
        submission, session = awaiting(task_id), self._session
        self.check_alive()
        self.runner.do(lambda now: session.watch(submission))
        try:
            await self.waits.finished(submission, 0, timeout_s, is_reason_wanted=False)
        except WaitTimeoutError:
            return None
        finally:
            self.runner.do(lambda now: session.unwatch(submission))
        return submission.outcome(0)

    def hear_together(self) -> None:
        """Take partial output of many tasks together, from now on.

        For who hears thousands, of an orchestrator of the same version. Before the loop's next
        turn: the greeting says it.
        """
        self._session.takes_streams = True

    def listen(self, task_id: str, on_stream: OnStream) -> Callable[[], None]:
        """Hear a task's partial output, and None once it is finished; return what stops it."""
        self.check_alive()
        return listen(self.runner, task_id, on_stream)

    def kept_output(self, task_id: str) -> KeptOutput | None:
        """Return what is kept of the output of a task that was submitted with ``listen=True``."""
        return self.runner.stream_buffer.of(task_id)

    def hear(self, task_id: str, on_stream: OnStream) -> Callable[[], object]:
        """Be told what comes in of a task that is listened to already; return what stops it."""
        self.runner.listeners.add(task_id, on_stream)
        return partial(self.runner.listeners.remove, task_id, on_stream)

    async def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """Ask the orchestrator something.

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout_s`.
        """
        answer = await self._answer(what, args, bounded(timeout_s))
        if answer is not None:
            return answer
        self.check_alive()
        why = await self._look(self._reasons.trouble) if timeout_s else ""
        raise unanswered(what, timeout_s, why)

    async def _answer(
        self, what: str, args: Mapping[str, object], timeout_s: float | None
    ) -> dict[str, Any] | None:
        """Return the answer to a question; None: there was none in time."""
        ready = self.loop.create_future()
        pending = self._questions.begin(what, args, partial(resolve, ready))
        try:
            await self.waits.until(ready, timeout_s, f"the answer to {what!r}")
        except WaitTimeoutError:
            return None
        finally:
            self._questions.end(pending)
        return pending.content()

    async def wait_connected(self, timeout_s: float | None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        timeout_s = bounded(timeout_s)
        self.check_alive()
        if self.is_connected:
            return True
        connected = self.loop.create_future()
        self._connecting.add(connected)
        try:
            await self.waits.until(connected, timeout_s, "a connection")
        except WaitTimeoutError:
            return False
        finally:
            self._connecting.discard(connected)
        return True

    # -------------------------------------------------------- why something does not come

    async def _why(self, task_id: str) -> str:
        return await self._look(lambda: self._reasons.of(task_id).text)

    async def _look(self, look: Callable[[], str]) -> str:
        """Have the mesh looked at, on a thread; where many wait for that, some are told nothing."""
        try:
            async with asyncio.timeout(WHY_S), self._one_looks:
                return await asyncio.shield(self._host.have_done(look)) or ""
        except TimeoutError:
            return ""

    def _say(self, what: str, task_id: str) -> None:
        self._host.have_done(lambda: log_waiting(what, self._reasons.of(task_id)))

    def _ask_from_afar(
        self, what: str, args: Mapping[str, object], timeout_s: float
    ) -> dict[str, Any]:
        """Ask from another thread."""
        if self.is_closed:
            raise NodeClosedError
        answer = asyncio.run_coroutine_threadsafe(self._answer(what, args, timeout_s), self.loop)
        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            content = answer.result(timeout_s + WHY_S)
            if content is not None:
                return content
        raise BrokerUnavailableError

    # ---------------------------------------------------------------------- the end

    async def close(self, timeout_s: float | None) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and let all go.

        Raises:
            NotAcknowledgedError: not all of it was, within `timeout_s`, or it was refused and
                nobody was told so.
        """
        waiters, why = self.waits.waiters, ""
        waiters.shut()
        try:
            with contextlib.suppress(D8Error):
                self.check_alive()
                await self.waits.emptied(timeout_s)
            if waiters.count:
                why = await self._why("")
        except BaseException as error:  # who waits is told by that, and by the log
            note_missing(error, missing_of(waiters, "the wait was interrupted"))
            raise
        finally:
            self._end()
            await self._host.finish()
            await self._guard.aclose()
        raise_missing(waiters, why)

    def abandon(self) -> None:
        """Nobody has this any more, and nobody closed it: as `leave`, but the loop may go on.

        Thread: any, for what is collected is so by any.
        """
        with contextlib.suppress(RuntimeError):  # it has been closed just now
            if self.loop.is_running():
                self.loop.call_soon_threadsafe(self._leave_soon)
                return
        self.leave()

    def _leave_soon(self) -> None:
        if self.waits.waiters.count:
            self._leaving = self.loop.create_task(self._leave_acknowledged(), name="d8-leave")
        else:
            self.leave()

    async def _leave_acknowledged(self) -> None:
        await self._wait_unclosed()  # where the loop ends meanwhile, that waits too
        self.leave()

    def leave(self) -> None:
        """Let all go, and say that nobody closed this: what it waits for may be lost."""
        if self.is_closed or self.runner.is_forked:
            return
        with contextlib.suppress(RuntimeError):  # a program that ends can start no more threads
            self._end()
        text = "an AsyncClient was never closed (async with does it)"
        missing = missing_of(self.waits.waiters, "")
        if missing is not None:
            text = f"{text}: {missing}"
        event(_log, logging.WARNING, "client.unclosed", what=text)
        warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def _end(self) -> None:
        if self.is_closed:
            return
        self.runner.is_closed = True
        error = self.runner.fatal or NodeClosedError()
        self.followed.end(error)
        self.waits.fail(error)
        self._host.stop()
        self._host.have_done(self._reconnector.close)

    async def _await_loop_end(self) -> AsyncGenerator[None, None]:
        """A loop that ends closes its asynchronous generators: so this hears of it."""
        try:
            yield
        finally:
            await self._wait_unclosed()
            self.leave()
            await self._host.finish()

    async def _wait_unclosed(self) -> None:
        """Nobody has closed this: wait, as `close` does, for what was submitted to be on disk."""
        waiters = self.waits.waiters
        if self.is_closed or self.runner.is_forked or not waiters.count:
            return
        waiters.shut()
        with contextlib.suppress(D8Error):
            self.check_alive()
            with contextlib.suppress(WaitTimeoutError):
                await self.waits.emptied(PRINT_AFTER_S)
            if waiters.count:
                print_waiting(waiters.count, UNCLOSED_S)
                await self.waits.emptied(UNCLOSED_S)

    def _after_turn(self) -> None:
        if self.runner.fatal is not None:
            self.followed.end(self.runner.fatal)
            self.waits.fail(self.runner.fatal)
        elif self._reconnector.hopeless is not None:
            self.waits.fail(self._reconnector.hopeless)
        elif self._connecting and self.runner.connected.is_set():
            for each in self._connecting:
                resolve(each)
