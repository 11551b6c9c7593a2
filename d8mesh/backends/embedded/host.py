"""Which model is in memory: one child at a time, loaded at first need, ended when idle.

Requests are served in order. One for another model waits until those that run have ended,
and those that came later wait behind it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from d8mesh.backends.embedded.catalogue import GgufModel
from d8mesh.backends.embedded.cores import threads_now
from d8mesh.backends.embedded.process import ModelProcess
from d8mesh.backends.embedded.server import Order
from d8mesh.backends.streaming import WANTED_LOOK_S

#: A model that nobody asked for so long leaves memory.
MODEL_IDLE_S: Final = 600.0
#: A child that is idle is asked whether it answers before it is trusted with a request.
CHILD_HEALTH_S: Final = 5.0
#: So often it is looked whether other cores are free than when the model was loaded ...
FOLLOW_S: Final = 60.0
#: ... and it is loaded anew for that only if it took no longer.
QUICK_LOAD_S: Final = 3.0
#: An answer that comes so many times slower than the quickest of its child has met other work.
SLOWED: Final = 2.0
#: Two answers at once come 11 % sooner than one after the other where there are two threads,
#: and 11 % later where there is one.
MANY_SLOTS: Final = 2


def slots_for(threads: int) -> int:
    """Return how many requests a model with so many threads answers at once."""
    return MANY_SLOTS if threads >= MANY_SLOTS else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """What a request needs of a child."""

    model: GgufModel
    #: tokens of one conversation
    context: int
    #: None: as many as cores are free
    threads: int | None
    #: the model is loaded within so many seconds, or not at all
    load_within_s: float
    #: called several times a second while waiting; what it raises ends that
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Lent:
    """A child that a request may use."""

    process: ModelProcess
    #: seconds that this request has waited for the model to be loaded; 0: it was
    load_s: float


class ModelHost:
    """Lends the child that has a model in memory.

    Args:
        idle_s: it is ended after so long without a request.

    Thread: any.
    """

    def __init__(self, *, idle_s: float = MODEL_IDLE_S) -> None:
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._users = 0
        self._process: ModelProcess | None = None
        self._looked_at = self._used_at = 0.0
        self._timer: threading.Timer | None = None

    @property
    def loaded(self) -> ModelProcess | None:
        """The child that has a model in memory now."""
        process = self._process
        return process if process is not None and process.url and process.is_alive else None

    @contextlib.contextmanager
    def lend(self, loan: Loan) -> Iterator[Lent]:
        """Lend a child as `loan` says, with its model loaded if it is not yet.

        Raises:
            ModelRefusedError: it cannot be loaded.
            BackendStalledError: it is not loaded in time.
            OSError: the child cannot be started.
        """
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            self._wait(lambda: self._line[0] is ticket, loan.check)
            lent = self._ready(loan)
            with self._changed:
                self._users += 1
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()
        try:
            yield lent
        finally:
            self._take_back()

    def note_speed(self, process: ModelProcess, tokens_per_s: float) -> None:
        """Take note of how fast an answer came: a slow one has the cores looked at again."""
        process.quickest = max(process.quickest, tokens_per_s)
        if tokens_per_s * SLOWED < process.quickest:
            self._looked_at = 0.0

    def close(self) -> None:
        """End the child."""
        with self._changed:
            timer, self._timer = self._timer, None
            process, self._process = self._process, None
        if timer is not None:
            timer.cancel()
        if process is not None:
            process.end()

    def _ready(self, loan: Loan) -> Lent:
        """Return the child to use; called by the first of the line alone."""
        process = self.loaded
        has_model = process is not None and process.order.path == str(loan.model.path)
        if process is not None and has_model and self._users:
            return Lent(process, 0.0)
        self._wait(lambda: not self._users, loan.check)
        threads = loan.threads
        if process is not None and has_model and process.is_answering(CHILD_HEALTH_S):
            threads = threads or self._threads_if_others(process)
            if threads is None or threads == process.order.threads:
                return Lent(process, 0.0)
        if self._process is not None:  # also one that has died by itself
            self._process.end()
        process = self._start(loan, threads or threads_now())
        process.load(loan.check, within_s=loan.load_within_s)
        return Lent(process, process.load_s)

    def _start(self, loan: Loan, threads: int) -> ModelProcess:
        self._looked_at = time.monotonic()
        is_embedder = loan.model.head.is_embedder
        order = Order(
            path=str(loan.model.path),
            key="",
            threads=threads,
            context=loan.context,
            slots=1 if is_embedder else slots_for(threads),
            is_embedder=is_embedder,
        )
        self._process = process = ModelProcess(loan.model.name, order)
        return process

    def _threads_if_others(self, process: ModelProcess) -> int | None:
        """Return how many threads there should be now; None if that is not to be asked yet."""
        now = time.monotonic()
        if now - self._looked_at < FOLLOW_S or process.load_s > QUICK_LOAD_S:
            return None
        self._looked_at = now
        return threads_now()

    def _wait(self, is_so: Callable[[], bool], check: Callable[[], None]) -> None:
        with self._changed:
            while not is_so():
                check()
                self._changed.wait(WANTED_LOOK_S)

    def _take_back(self) -> None:
        with self._changed:
            self._users -= 1
            self._used_at = time.monotonic()
            self._changed.notify_all()
            if self._timer is None:
                self._begin_timer(self._idle_s)

    def _begin_timer(self, wait_s: float) -> None:
        self._timer = threading.Timer(wait_s, self._look_for_idleness)
        self._timer.daemon = True
        self._timer.start()

    def _look_for_idleness(self) -> None:
        with self._changed:
            if self._timer is None:  # closed
                return
            left_s = self._idle_s - (time.monotonic() - self._used_at)
            if self._users or self._line or left_s > 0:
                self._begin_timer(max(left_s, WANTED_LOOK_S))
                return
            self._timer, process, self._process = None, self._process, None
        if process is not None:
            process.end()
