"""A client's session as an asyncio node: the brain, its link and its waits on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final

from d8mesh.config import Config
from d8mesh.core.messages import Ask, Group, Stream
from d8mesh.core.parcel import Parcel
from d8mesh.edge.logs import event
from d8mesh.errors import (
    BrokerUnavailableError,
    NodeClosedError,
    NotAcknowledgedError,
    WaitTimeoutError,
)
from d8mesh.nodes.client.aio.host import LoopHost
from d8mesh.nodes.client.aio.waits import Waits
from d8mesh.nodes.client.dial import Dialler
from d8mesh.nodes.client.listening import listen
from d8mesh.nodes.client.node import _new_session
from d8mesh.nodes.client.parcels import PARCEL_TASKS, Kind, awaiting, check_encodable, size_of
from d8mesh.nodes.client.patience import bounded
from d8mesh.nodes.client.runner import Runner, Slot
from d8mesh.nodes.client.submitter import Submitter

#: Ids that the message of an error names; all of them stand in its `task_ids`.
IDS_TOLD: Final = 5
_log: Final = logging.getLogger("d8mesh.client")


class AsyncNode:
    """One session with one mesh, on the running event loop.

    Args:
        config: settings.
        endpoint: ``tcp://HOST:PORT`` of a broker, if that is known.
        url: ``http://HOST:PORT`` of an orchestrator, if that is known.

    Thread: the loop's. Finding an orchestrator and closing connections happen on threads of
    their own, for they block.
    """

    def __init__(self, config: Config, *, endpoint: str | None, url: str | None) -> None:
        self.loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._session = _new_session(config.mesh)
        self._is_closed = False
        self._next_request = itertools.count(1)
        self._connecting: set[asyncio.Future[None]] = set()
        self.waits = Waits(self.loop, self.check_alive)
        self._host = LoopHost(self.loop, self._after_turn)
        self._dialler = Dialler(config, endpoint=endpoint, url=url, wake=self._host.wake_from_afar)
        self._runner = Runner(self._session, self.waits.board, self._host, self._dialler)
        self._submitter = Submitter(self._session, self.waits.board, self._runner)
        self._host.start(self._runner)
        self._guard = self._await_loop_end()
        with contextlib.suppress(StopIteration):  # it comes to its `yield` without waiting
            self._guard.__anext__().send(None)

    @property
    def is_connected(self) -> bool:
        """True while an orchestrator answers."""
        return self._session.is_up

    @property
    def is_over_http(self) -> bool:
        """True while only the REST port can be reached."""
        return self._runner.is_over_http

    def check_alive(self) -> None:
        """Raise what makes everything useless.

        Raises:
            NodeClosedError: it is closed, or this is the child of a fork.
            D8Error: the orchestrator refuses this client for good.
        """
        if self._runner.fatal is not None:
            raise self._runner.fatal
        if self._is_closed:
            raise NodeClosedError
        if os.getpid() != self._pid:
            raise NodeClosedError("a client does not survive a fork: make a new one in the child")

    # ------------------------------------------------------------------- submitting

    async def append(
        self, kind: Kind, payload: bytes, timeout_s: float | None, *, is_watched: bool = True
    ) -> tuple[Parcel, int]:
        """Put one task into the parcel that is open; return its place.

        Raises:
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        self.check_alive()
        await self.waits.room(1, len(payload), timeout_s)
        parcel, index = self._submitter.append(kind, payload, timeout_s, is_watched)
        if index == PARCEL_TASKS - 1:  # a long run of submits lets others in between
            await asyncio.sleep(0)
        return parcel, index

    async def enqueue(
        self,
        groups: list[Group],
        timeout_s: float | None,
        *,
        key: str = "",
        digest: bytes = b"",
        is_watched: bool = True,
    ) -> Parcel:
        """Submit these as one parcel.

        Raises:
            As `append`; InvalidTaskError, PayloadTooLargeError: no message can carry them.
        """
        self.check_alive()
        await self.waits.room(*size_of(groups), timeout_s)
        return self._submitter.enqueue(
            groups, timeout_s, key=key, digest=digest, is_watched=is_watched
        )

    def next_id(self) -> tuple[str, int]:
        """Return a session and a counter that make an unused task id."""
        return self._session.name, self._submitter.next_n()

    # ----------------------------------------------------------------------- asking

    def watch(self, task_id: str) -> Parcel:
        """Return where the outcome of anybody's task will arrive."""
        self.check_alive()
        parcel = awaiting(task_id)
        self._runner.do(lambda now: self._session.watch(parcel))
        return parcel

    def listen(self, task_id: str, on_event: Callable[[Stream | None], None]) -> Callable[[], None]:
        """Hear a task's partial output, and None once it is finished; return what stops it."""
        self.check_alive()
        return listen(self._runner, self._session, task_id, on_event)

    async def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """Ask the orchestrator something.

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout_s`.
        """
        wait_s = bounded(timeout_s)
        self.check_alive()
        request = next(self._next_request)
        question = Ask(request, what, dict(args))
        check_encodable(question, what)
        answered = self.loop.create_future()
        slot = self._runner.answers[request] = Slot(_Flag(answered))
        self._runner.do(lambda now: self._session.ask(question, now))
        try:
            await self.waits.other(answered, wait_s, "an answer")
        except WaitTimeoutError:
            raise BrokerUnavailableError(
                f"no orchestrator answered {what!r} within {timeout_s:g} s"
            ) from None
        finally:
            self._runner.answers.pop(request, None)
            if not slot.is_answered:
                self._runner.do(lambda now: self._session.forget_ask(request))
        if not slot.is_answered:
            self.check_alive()
        return slot.content()

    async def wait_connected(self, timeout_s: float | None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        timeout_s = bounded(timeout_s)
        self.check_alive()
        if self.is_connected:
            return True
        connected = self.loop.create_future()
        self._connecting.add(connected)
        try:
            await self.waits.other(connected, timeout_s, "a connection")
        except WaitTimeoutError:
            return False
        finally:
            self._connecting.discard(connected)
        return True

    # ---------------------------------------------------------------------- the end

    async def close(self, timeout_s: float | None) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and let all go.

        Raises:
            NotAcknowledgedError: not all of it was, within `timeout_s`.
            TaskRejectedError: a part of what was submitted since the last flush was refused.
        """
        try:
            if self._runner.fatal is None:
                with contextlib.suppress(WaitTimeoutError):
                    await self.waits.flush(timeout_s)
        finally:
            ids = self._unacknowledged()
            self._end()
            await self._host.finish()
            await self._guard.aclose()
        if ids:
            raise not_acknowledged(ids) from self._runner.fatal

    def leave(self) -> None:
        """Let all go, and say that nobody closed this: what it waits for may be lost."""
        if self._is_closed:
            return
        count = len(self._unacknowledged())
        with contextlib.suppress(RuntimeError):  # a program that ends can start no more threads
            self._end()
        event(_log, logging.WARNING, "client.unclosed", unacknowledged=count)
        text = f"an AsyncClient was never closed: {count} of its tasks are not acknowledged"
        warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def _end(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.waits.fail(self._runner.fatal or NodeClosedError())
        self._host.stop()
        self._host.have_done(self._dialler.close)

    def _unacknowledged(self) -> list[str]:
        pending = self.waits.board.pending()
        return [parcel.task_id(index) for parcel in pending for index in range(parcel.count)]

    async def _await_loop_end(self) -> AsyncGenerator[None, None]:
        """A loop that ends closes its asynchronous generators: so this hears of it."""
        try:
            yield
        finally:
            self.leave()
            await self._host.finish()

    def _after_turn(self) -> None:
        if self._runner.fatal is not None:
            self.waits.fail(self._runner.fatal)
        elif self._connecting and self._runner.connected.is_set():
            for each in self._connecting:
                if not each.done():
                    each.set_result(None)


def not_acknowledged(task_ids: Sequence[str]) -> NotAcknowledgedError:
    """Return the error of a client that ends before these were acknowledged."""
    first = ", ".join(task_ids[:IDS_TOLD]) + (", …" if len(task_ids) > IDS_TOLD else "")
    return NotAcknowledgedError(
        f"{len(task_ids)} tasks are not acknowledged and may be lost: {first}", task_ids=task_ids
    )


class _Flag:
    """Sets a future when an answer is there."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
