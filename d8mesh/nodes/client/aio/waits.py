"""Where coroutines wait for what happens to parcels, for room, and for a connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar

from d8mesh.core.parcel import Parcel
from d8mesh.errors import D8Error, WaitTimeoutError
from d8mesh.nodes.client.board import Board
from d8mesh.nodes.client.patience import bounded, countdown, told_whole

Signal: TypeAlias = "asyncio.Future[None]"
Item = TypeVar("Item")
#: In the place of a task's index: the acknowledgement of the parcel.
ACKNOWLEDGED: Final = -1
#: An event loop's clocks take no more.
LONGEST_S: Final = 1e8


class Waits:
    """The coroutines that wait, each on a future of its own: giving up harms nobody else.

    Args:
        loop: the event loop.
        check_alive: raises when waiting has become useless.

    Thread: the loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, check_alive: Callable[[], None]) -> None:
        self._loop = loop
        self.board = Board(check_alive, self._changed)
        #: of each parcel, by task or `ACKNOWLEDGED`
        self._waiting: dict[Parcel, dict[int, list[Signal]]] = {}
        self._for_room: deque[tuple[int, int, Signal]] = deque()
        self._others: set[Signal] = set()

    @property
    def count(self) -> int:
        """How many things are waited for."""
        of_parcels = sum(len(waiting) for waiting in self._waiting.values())
        return of_parcels + len(self._for_room) + len(self._others)

    # ----------------------------------------------------------------------- waiting

    async def finished(self, parcel: Parcel, index: int, timeout_s: float | None) -> None:
        """Wait until it is known how task `index` ended, or that its submit was refused."""
        what = f"the result of {parcel.task_id(index)}"
        if not parcel.states[index] and parcel.refusal is None:
            await self._of(parcel, index, timeout_s, what)

    async def settled(self, parcel: Parcel, timeout_s: float | None) -> None:
        """Wait until a parcel is acknowledged; raise what it was refused with."""
        if not parcel.is_settled:
            what = f"the acknowledgement of {parcel.task_id(0)}"
            await self._of(parcel, ACKNOWLEDGED, timeout_s, what)
        parcel.raise_refusal()

    async def room(self, count: int, size_bytes: int, timeout_s: float | None) -> None:
        """Wait until so much fits; who came first is first."""
        if not self._for_room and self.board.has_room(count, size_bytes):
            return
        what = "room for more tasks (the queue is full, or no orchestrator answers)"
        left_s, queue = countdown(timeout_s), self._for_room.append
        while True:
            signal = self._loop.create_future()
            queue((count, size_bytes, signal))
            try:
                await self._until(signal, left_s(), what)
            except BaseException as error:  # it leaves its place to the next
                signal.cancel()
                self._make_room()
                if isinstance(error, WaitTimeoutError):
                    raise told_whole(error, timeout_s) from None
                raise
            if self.board.has_room(count, size_bytes):
                return
            queue = self._for_room.appendleft  # somebody else was quicker

    async def flush(self, timeout_s: float | None) -> None:
        """Wait until what is pending now is settled; raise the first refusal since the last."""
        timeout_s = bounded(timeout_s)
        left_s = countdown(timeout_s)
        try:
            for parcel in self.board.pending():
                if not parcel.is_settled:
                    what = "the acknowledgement of what was submitted"
                    await self._of(parcel, ACKNOWLEDGED, left_s(), what)
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None
        self.board.raise_refusal()

    async def other(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """Wait for what `signal` stands for; it ends with the client too."""
        self._others.add(signal)
        try:
            await self._until(signal, timeout_s, what)
        finally:
            self._others.discard(signal)

    def signal(self, parcel: Parcel, index: int) -> Signal:
        """Return a future that is done with the outcome of a task, or an acknowledgement."""
        signal = self._loop.create_future()
        self._waiting.setdefault(parcel, {}).setdefault(index, []).append(signal)
        return signal

    async def _of(self, parcel: Parcel, index: int, timeout_s: float | None, what: str) -> None:
        signal = self.signal(parcel, index)
        try:
            await self._until(signal, timeout_s, what)
        except BaseException:
            self._forget(parcel, index, signal)
            raise

    async def _until(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """Wait for `signal`, which is of this wait alone.

        Raises:
            WaitTimeoutError: `timeout_s` is over.
            D8Error: the client is closed, or useless.
        """
        timer = None
        if timeout_s is not None:
            wait_s = min(max(timeout_s, 0.0), LONGEST_S)
            timer = self._loop.call_later(wait_s, _expire, signal, what, timeout_s)
        try:
            await signal
        finally:
            if timer is not None:
                timer.cancel()

    def _forget(self, parcel: Parcel, index: int, signal: Signal) -> None:
        """A wait was given up."""
        waiting = self._waiting.get(parcel, {})
        signals = waiting.get(index)
        if signals is None or signal not in signals:
            return
        signals.remove(signal)
        if not signals:
            del waiting[index]
        if not waiting:
            del self._waiting[parcel]

    # ------------------------------------------------------------- what has happened

    def _changed(self, parcel: Parcel) -> None:
        """Wake who waits for what this parcel has now."""
        waiting = self._waiting.get(parcel)
        if waiting:
            states, is_refused = parcel.states, parcel.refusal is not None
            is_settled = parcel.is_settled
            for index in [
                index
                for index in waiting
                if is_refused or (states[index] if index >= 0 else is_settled)
            ]:
                for signal in waiting.pop(index):
                    _resolve(signal)
            if not waiting:
                del self._waiting[parcel]
        if self._for_room and parcel.is_settled:
            self._make_room()

    def _make_room(self) -> None:
        """Wake who waits for room, in their order, as many as may fit."""
        count = size_bytes = 0
        while self._for_room:
            more, more_bytes, signal = self._for_room[0]
            if not signal.done():
                count, size_bytes = count + more, size_bytes + more_bytes
                if not self.board.has_room(count, size_bytes):
                    return
                signal.set_result(None)
            self._for_room.popleft()

    def fail(self, error: D8Error) -> None:
        """End every wait with `error`: there is no sense in waiting any more."""
        waiting = [each for of_one in self._waiting.values() for each in of_one.values()]
        signals = [signal for each in waiting for signal in each]
        signals += [signal for _, _, signal in self._for_room]
        for signal in [*signals, *self._others]:
            _fail(signal, error)
        self._for_room.clear()


class Inbox(Generic[Item]):
    """What arrives for one coroutine that takes it piece by piece."""

    def __init__(self, loop: asyncio.AbstractEventLoop, waits: Waits) -> None:
        self._loop, self._waits = loop, waits
        self._items: deque[Item] = deque()
        self._signal: Signal | None = None

    def put(self, item: Item) -> None:
        """Add one."""
        self._items.append(item)
        if self._signal is not None:
            _resolve(self._signal)

    async def next(self, timeout_s: float | None, what: str) -> Item:
        """Wait for the next and take it.

        Raises:
            WaitTimeoutError: there was none within `timeout_s`.
        """
        if not self._items:
            self._signal = self._loop.create_future()
            await self._waits.other(self._signal, timeout_s, what)
        return self._items.popleft()


def _resolve(signal: Signal) -> None:
    if not signal.done():
        signal.set_result(None)


def _expire(signal: Signal, what: str, timeout_s: float) -> None:
    _fail(signal, WaitTimeoutError(f"{what} has not come within {timeout_s:g} s"))


def _fail(signal: Signal, error: D8Error) -> None:
    if not signal.done():
        signal.set_exception(error)
