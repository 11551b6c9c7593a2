"""Where callers' threads wait for what happens to parcels, and for room to submit more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from d8mesh.core.messages import SOFT_FRAME_BYTES, Refused
from d8mesh.core.parcel import Parcel
from d8mesh.edge.logs import event
from d8mesh.errors import WaitTimeoutError, error_of
from d8mesh.nodes.client.parcels import PARCEL_TASKS
from d8mesh.nodes.client.patience import bounded

#: Tasks and bytes that may wait here to be acknowledged; beyond it `submit` blocks.
MAX_PENDING_TASKS: Final = 50_000
MAX_PENDING_BYTES: Final = 64 * 1024 * 1024
#: Waits without an end say so in the log this often.
STILL_WAITING_S: Final = 30.0
#: Waiting threads look around this often, whatever happens.
LOOK_S: Final = 1.0

_log: Final = logging.getLogger("d8mesh.client")


class Board:
    """Counts what is not yet acknowledged, and wakes who waits.

    Args:
        check_alive: raises when waiting has become useless.
        on_change: called when something of a parcel has changed, beside those who wait here.

    Thread: `settled` and `changed` are called by the I/O thread, the rest by any.
    """

    def __init__(
        self,
        check_alive: Callable[[], None],
        on_change: Callable[[Parcel], None] | None = None,
    ) -> None:
        self._check_alive, self._on_change = check_alive, on_change
        self.lock = threading.RLock()
        self._room = threading.Condition(self.lock)
        self._tasks = self._bytes = 0
        self._pending: dict[Parcel, int] = {}
        self._waiters: dict[Parcel, _Waiters] = {}
        self._refusal: Refused | None = None  #: the first since the last flush

    @property
    def waiting(self) -> int:
        """How many parcels are waited for."""
        return len(self._waiters)

    # ------------------------------------------------------- under the lock, by callers

    def add(self, parcel: Parcel, size_bytes: int) -> None:
        """Note a new parcel; its outcomes can arrive from now on."""
        self._pending[parcel] = size_bytes
        parcel.states, parcel.payloads = bytearray(parcel.count), [None] * parcel.count
        parcel.missing = parcel.count if parcel.is_watched else 0

    def grow(self, parcel: Parcel, size_bytes: int) -> bool:
        """Make a place for one more task in a parcel; False if it is full."""
        size_bytes += self._pending[parcel]
        if parcel.count >= PARCEL_TASKS or size_bytes > SOFT_FRAME_BYTES:
            return False
        self._pending[parcel] = size_bytes
        parcel.states.append(0)
        parcel.payloads.append(None)
        parcel.missing += parcel.is_watched
        return True

    def wait_for_room(self, count: int, size_bytes: int, timeout_s: float | None) -> None:
        """Wait until so much fits, and count it as pending.

        Raises:
            WaitTimeoutError: it did not fit within `timeout_s`.
        """
        if not self.has_room(count, size_bytes):
            self._wait(
                self._room,
                lambda: self.has_room(count, size_bytes),
                timeout_s,
                "room for more tasks (the queue is full, or no orchestrator answers)",
            )
        else:
            self._check_alive()
        self._tasks += count
        self._bytes += size_bytes

    def has_room(self, count: int, size_bytes: int) -> bool:
        """Return whether so much fits beside what is pending; one alone always does."""
        return not self._tasks or (
            self._tasks + count <= MAX_PENDING_TASKS
            and self._bytes + size_bytes <= MAX_PENDING_BYTES
        )

    def pending(self) -> list[Parcel]:
        """Return what is not yet acknowledged, in its order."""
        return list(self._pending)

    def raise_refusal(self) -> None:
        """Raise the first refusal since the last time; none: nothing happens."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise error_of(refusal.code, refusal.message)

    # ------------------------------------------------------------------------ waiting

    def wait_for(
        self, parcel: Parcel, is_over: Callable[[], bool], timeout_s: float | None, *, what: str
    ) -> None:
        """Wait until `is_over`, which changes with what arrives of the parcel.

        Raises:
            InvalidTaskError: `timeout_s` is no number of seconds.
            WaitTimeoutError: it is over.
        """
        timeout_s = bounded(timeout_s)
        if is_over():
            return
        with self.lock:
            waiters = self._waiters.get(parcel)
            if waiters is None:
                waiters = self._waiters[parcel] = _Waiters()
            waiters.wanted.append(is_over)
        try:
            with waiters.condition:
                self._wait(waiters.condition, is_over, timeout_s, what)
        finally:
            with self.lock:
                waiters.wanted.remove(is_over)
                if not waiters.wanted:
                    del self._waiters[parcel]

    def wait_settled(self, parcel: Parcel, timeout_s: float | None) -> None:
        """Wait until a parcel is acknowledged; raise what it was refused with."""
        what = f"the acknowledgement of {parcel.task_id(0)}"
        self.wait_for(parcel, lambda: parcel.is_settled, timeout_s, what=what)
        parcel.raise_refusal()

    def flush(self, timeout_s: float | None) -> None:
        """Wait until what is pending now is settled; raise the first refusal since the last flush.

        Raises:
            WaitTimeoutError: `timeout_s` is over.
        """
        timeout_s = bounded(timeout_s)
        with self.lock:
            mine = set(self._pending)
            self._wait(
                self._room,
                lambda: mine.isdisjoint(self._pending),
                timeout_s,
                "the acknowledgement of what was submitted",
            )
            self.raise_refusal()

    def _wait(
        self,
        condition: threading.Condition,
        is_over: Callable[[], bool],
        timeout_s: float | None,
        what: str,
    ) -> None:
        """Wait, holding `condition`."""
        start = told = time.monotonic()
        while not is_over():
            self._check_alive()
            now = time.monotonic()
            left_s = LOOK_S if timeout_s is None else start + timeout_s - now
            if left_s <= 0:
                raise WaitTimeoutError(f"{what} has not come within {timeout_s:g} s")
            if now - told > STILL_WAITING_S:
                told = now
                event(_log, logging.WARNING, "still.waiting", what=what)
            condition.wait(min(LOOK_S, left_s))

    # ------------------------------------------------------------------ the I/O thread

    def settled(self, parcel: Parcel) -> None:
        """Make room for what comes next, and wake who waits for this parcel."""
        with self.lock:
            self._refusal = self._refusal or parcel.refusal
            size = self._pending.pop(parcel, None)
            if size is not None:
                self._tasks -= parcel.count
                self._bytes -= size
                self._room.notify_all()
        self.changed(parcel)

    def changed(self, parcel: Parcel) -> None:
        """Wake who waits for what this parcel has now; nobody else: a wake-up costs time."""
        if self._on_change is not None:
            self._on_change(parcel)
        waiters = self._waiters.get(parcel)
        if waiters is not None and any(is_over() for is_over in tuple(waiters.wanted)):
            with waiters.condition:
                waiters.condition.notify_all()

    def close(self) -> None:
        """Wake everybody: waiting has become useless."""
        with self.lock:
            self._room.notify_all()
            waiting = list(self._waiters.values())
        for waiters in waiting:
            with waiters.condition:
                waiters.condition.notify_all()


class _Waiters:
    """The threads that wait for one parcel."""

    __slots__ = ("condition", "wanted")

    def __init__(self) -> None:
        self.condition = threading.Condition(threading.Lock())
        #: of each thread, what it waits for
        self.wanted: list[Callable[[], bool]] = []
