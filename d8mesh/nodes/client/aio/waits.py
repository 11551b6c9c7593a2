"""Where coroutines wait for what happens to submissions, for room, and for a connection."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from d8mesh.core.client.submission import Submission
from d8mesh.errors import D8Error, WaitTimeoutError
from d8mesh.nodes.client.completion_waiters import (
    LOOK_AROUND_S,
    LOOKS_S,
    QUIET_S,
    CompletionWaiters,
)
from d8mesh.nodes.client.timeouts import bounded, countdown, timed_out, told_whole

#: What is waited for: True once it has come, False when the time is over.
Signal: TypeAlias = "asyncio.Future[bool]"
_Element = TypeVar("_Element")
#: In the place of a task's index: the acknowledgement of the submission.
ACKNOWLEDGED: Final = -1
#: An event loop's clocks take no more.
LONGEST_S: Final = 1e8


class _OneWait(NamedTuple):
    """Since when one waits (monotonic seconds), for what, and whose outcome it is."""

    since: float
    what: str
    task_id: str | None


class _RoomWait(NamedTuple):
    """One who waits for room."""

    tasks: int
    size_bytes: int
    signal: Signal


class Waits:
    """The coroutines that wait, each on a future of its own: giving up harms nobody else.

    Args:
        loop: the event loop.
        check_alive: raises when waiting has become useless.
        why: says why a task (an empty id: what is submitted) is not further; takes a short time.
        say: the same for the log, with what is waited for; returns at once.

    Thread: the loop's.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        check_alive: Callable[[], None],
        why: Callable[[str], Awaitable[str]],
        say: Callable[[str, str], None],
    ) -> None:
        self._loop, self._why, self._say = loop, why, say
        self.waiters = CompletionWaiters(check_alive, on_change=self._changed)
        #: of each submission, for which task or `ACKNOWLEDGED`
        self._waiting: dict[Submission, dict[Signal, int]] = {}
        self._for_room: deque[_RoomWait] = deque()
        #: who was woken because there is room, and has not used it yet; how many tasks and bytes
        self._promises: set[Signal] = set()
        self._promised = self._promised_bytes = 0
        #: the oldest first
        self._waits: dict[Signal, _OneWait] = {}
        self._look: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """How many coroutines wait."""
        return len(self._waits)

    # ----------------------------------------------------------------------- waiting

    async def finished(
        self,
        submission: Submission,
        index: int,
        timeout_s: float | None,
        *,
        is_reason_wanted: bool = True,
    ) -> None:
        """Wait until it is known how task `index` ended, or that its submit was refused.

        Args:
            is_reason_wanted: that it does not come is said, and why.
        """
        if not submission.is_known(index):
            task_id = submission.task_id(index)
            asked_of = task_id if is_reason_wanted else None
            await self._of(submission, index, timeout_s, f"the result of {task_id}", asked_of)

    async def settled(self, submission: Submission, timeout_s: float | None) -> None:
        """Wait until a submission is acknowledged; raise what it was refused with."""
        if not submission.is_settled:
            what = f"the acknowledgement of {submission.task_id(0)}"
            await self._of(submission, ACKNOWLEDGED, timeout_s, what, "")
        submission.raise_refusal()

    async def room(self, count: int, size_bytes: int, timeout_s: float | None) -> None:
        """Wait until so much fits; who came first is first. What is to fill it is added at once."""
        if self.has_room(count, size_bytes):
            return
        signal = self._loop.create_future()
        self._for_room.append(_RoomWait(count, size_bytes, signal))
        try:
            await self.until(signal, timeout_s, "room for more tasks", "")
        finally:
            if signal in self._promises:  # from now on it is used, or given up
                self._promises.discard(signal)
                self._promised -= count
                self._promised_bytes -= size_bytes
            if self._for_room:
                self._loop.call_soon(self._make_room)

    def has_room(self, count: int, size_bytes: int) -> bool:
        """Return whether `room` would not wait."""
        return not self._for_room and self._fits(count, size_bytes)

    async def flush(self, timeout_s: float | None) -> None:
        """Wait until what is pending now is settled; raise the first refusal since the last."""
        timeout_s = bounded(timeout_s)
        try:
            await self.emptied(timeout_s, "")
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None
        self.waiters.raise_refusal()

    async def emptied(self, timeout_s: float | None, task_id: str | None = None) -> None:
        """Wait until what is pending now is settled; say why not only with an empty `task_id`."""
        left_s, what = countdown(timeout_s), "the acknowledgement of what was submitted"
        for submission in self.waiters.pending():
            if not submission.is_settled:
                await self._of(submission, ACKNOWLEDGED, left_s(), what, task_id)

    def signal(self, submission: Submission, index: int) -> Signal:
        """Return a future that is done with the outcome of a task, or an acknowledgement."""
        signal = self._loop.create_future()
        self._waiting.setdefault(submission, {})[signal] = index
        return signal

    async def _of(
        self,
        submission: Submission,
        index: int,
        timeout_s: float | None,
        what: str,
        task_id: str | None,
    ) -> None:
        signal = self.signal(submission, index)
        try:
            await self.until(signal, timeout_s, what, task_id)
        except WaitTimeoutError:
            if not _has_come(submission, index):  # it may have, while it was asked why not
                raise
        finally:
            self._forget(submission, signal)

    async def until(
        self, signal: Signal, timeout_s: float | None, what: str, task_id: str | None = None
    ) -> None:
        """Wait for `signal`, which is of this wait alone; it ends with the client too.

        Args:
            what: what is waited for, for people.
            task_id: whose outcome it is; empty: an acknowledgement; None: why it has not come is
                nobody's question.

        Raises:
            WaitTimeoutError: `timeout_s` is over.
            D8Error: the client is closed, or useless.
        """
        self.waiters.check_alive()
        timer = None
        if timeout_s is not None:
            wait_s = min(max(timeout_s, 0.0), LONGEST_S)
            timer = self._loop.call_later(wait_s, resolve, signal, False)
        self._waits[signal] = _OneWait(time.monotonic(), what, task_id)
        if self._look is None:
            self._look = self._loop.call_later(QUIET_S, self._look_around)
        try:
            if await signal:
                return
        finally:
            del self._waits[signal]
            if timer is not None:
                timer.cancel()
        is_look = timeout_s is None or timeout_s < LOOKS_S or task_id is None
        raise timed_out(what, timeout_s, "" if is_look else await self._why(task_id or ""))

    def _look_around(self) -> None:
        """Have it said once when nothing has come for long."""
        self._look = None
        for wait in self._waits.values():
            if wait.task_id is not None:
                if self.waiters.is_stalled(wait.since, time.monotonic()):
                    self._say(wait.what, wait.task_id)
                self._look = self._loop.call_later(LOOK_AROUND_S, self._look_around)
                return

    def _forget(self, submission: Submission, signal: Signal) -> None:
        """A wait is over: by what has come, it is forgotten already, or it was given up."""
        waiting = self._waiting.get(submission, {})
        waiting.pop(signal, None)
        if not waiting:
            self._waiting.pop(submission, None)

    # ------------------------------------------------------------- what has happened

    def _changed(self, submission: Submission) -> None:
        """Wake who waits for what this submission has now."""
        waiting = self._waiting.get(submission, {})
        for signal in [each for each, index in waiting.items() if _has_come(submission, index)]:
            del waiting[signal]
            resolve(signal)
        if not waiting:
            self._waiting.pop(submission, None)
        if self._for_room and submission.is_settled:
            self._make_room()

    def _make_room(self) -> None:
        """Wake who waits for room, in their order, as many as fit."""
        while self._for_room:
            tasks, size_bytes, signal = self._for_room[0]
            if not signal.done():
                if not self._fits(tasks, size_bytes):
                    return
                self._promised += tasks
                self._promised_bytes += size_bytes
                self._promises.add(signal)
                signal.set_result(True)
            self._for_room.popleft()

    def _fits(self, count: int, size_bytes: int) -> bool:
        """Return whether there is room beside what is promised to those who were woken."""
        return self.waiters.has_room(count + self._promised, size_bytes + self._promised_bytes)

    def fail(self, error: D8Error) -> None:
        """End every wait with `error`: there is no sense in waiting any more, or for now."""
        signals = [signal for each in self._waiting.values() for signal in each]
        signals += [each.signal for each in self._for_room]
        for signal in [*signals, *self._waits]:
            if not signal.done():
                signal.set_exception(copy(error))  # each its own: it names what was waited for
        self._for_room.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None


class Inbox(Generic[_Element]):
    """What arrives for one coroutine that takes it piece by piece."""

    def __init__(self, loop: asyncio.AbstractEventLoop, waits: Waits) -> None:
        self._loop, self._waits = loop, waits
        self._items: deque[_Element] = deque()
        self._signal: Signal | None = None

    def put(self, item: _Element) -> None:
        """Add one."""
        self._items.append(item)
        if self._signal is not None:
            resolve(self._signal)

    @property
    def is_empty(self) -> bool:
        """True if there is none to take."""
        return not self._items

    async def next(
        self, timeout_s: float | None, what: str, task_id: str | None = None
    ) -> _Element:
        """Wait for the next and take it; WaitTimeoutError: there was none within `timeout_s`."""
        if not self._items:
            self._signal = self._loop.create_future()
            await self._waits.until(self._signal, timeout_s, what, task_id)
        return self._items.popleft()


def _has_come(submission: Submission, index: int) -> bool:
    return submission.is_settled if index == ACKNOWLEDGED else submission.is_known(index)


def resolve(signal: Signal, has_come: bool = True) -> None:
    """End a wait, if it is not over: what is waited for has come, or the time is over."""
    if not signal.done():
        signal.set_result(has_come)
