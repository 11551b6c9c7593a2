"""The event loop that all coroutine handlers of a worker share, on a thread of its own.

Nothing a handler does to it ends another's attempt: what its coroutine raises stays in it,
what its callbacks raise is traced back to it, stopping or closing the loop is refused, and a
loop that is broken all the same is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from d8mesh.edge.logs import event
from d8mesh.errors import HandlerError, TaskCancelledError
from d8mesh.handlers.forks import FORKS, end_copy

#: How often a slot that waits for a coroutine looks whether it is cancelled.
CANCELLED_LOOK_S: Final = 0.1
#: How long the loop's thread may take to end.
LOOP_END_S: Final = 1.0

_log: Final = logging.getLogger("d8mesh.worker")
#: the run that a coroutine, and all it starts or schedules, belongs to
_current: Final[ContextVar[_CoroutineRun]] = ContextVar("d8mesh_run")


class Coroutines:
    """One event loop, started when it is first needed.

    Thread: `run` by the slots', `close` by the I/O thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: _HandlerLoop | None = None

    def run(self, awaitable: Awaitable[object], is_cancelled: Callable[[], bool]) -> object:
        """Return what the awaitable returns, or raise what it raises; cancel it when told so."""
        run = _CoroutineRun(awaitable)
        with self._lock:
            if self._served is None or not self._served.begin(run):
                self._served = _HandlerLoop()
                self._served.begin(run)
        while not run.is_over.wait(CANCELLED_LOOK_S):
            if is_cancelled():
                run.end(TaskCancelledError())
        if run.error is None:
            return run.value
        error, run.error = run.error, None
        try:
            raise error
        finally:
            del error, run  # its traceback holds this frame: no cycle is left behind

    def close(self) -> None:
        """End the loop."""
        with self._lock:
            served = self._served
        if served is not None:
            served.close()


class _CoroutineRun:
    """One coroutine of a handler: how it ended, and how to end it."""

    def __init__(self, awaitable: Awaitable[object]) -> None:
        self.is_over = threading.Event()
        self.value: object = None
        self.error: BaseException | None = None
        self._awaitable = awaitable
        self._forks = len(FORKS)
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin. Thread: the loop's, in a context of its own."""
        _current.set(self)
        self._loop = loop
        guard = self._guard()
        try:
            self._task = loop.create_task(guard)
        except BaseException as error:  # a handler may have set a task factory of its own
            guard.close()
            self._tell(None, error)

    def end(self, error: BaseException) -> None:
        """Have it over with this error; what still runs of it is cancelled. Thread: any."""
        self._tell(None, error)
        task, loop = self._task, self._loop
        if task is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

    async def _guard(self) -> None:
        """Run to the end. Nothing comes out, for some of it would end the loop."""
        if self.is_over.is_set():  # cancelled before it began
            close = getattr(self._awaitable, "close", None)
            if close is not None:
                close()
            return
        try:
            value = await self._awaitable
        except BaseException as error:  # also SystemExit, KeyboardInterrupt, GeneratorExit
            if len(FORKS) != self._forks:
                end_copy(error)
            self._tell(None, error)
        else:
            if len(FORKS) != self._forks:  # it forked: the copy has the loop's descriptors too
                end_copy(None)
            self._tell(value, None)

    def _tell(self, value: object, error: BaseException | None) -> None:
        with self._lock:
            if not self.is_over.is_set():
                self.value, self.error = value, error
                self.is_over.set()


class _HandlerLoop:
    """An event loop and its thread; used until it is closed or broken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[_CoroutineRun] = set()
        self._is_dead = False
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_heed)
        self._stop = self._loop.stop
        _refuse(self._loop, "stop", "close")
        self._thread = threading.Thread(target=self._serve, name="coroutines", daemon=True)
        self._thread.start()

    def begin(self, run: _CoroutineRun) -> bool:
        """Start a coroutine; False: this loop takes none any more."""
        with self._lock:
            if self._is_dead:
                return False
            self._runs = {each for each in self._runs if not each.is_over.is_set()}
            self._runs.add(run)
        try:
            self._loop.call_soon_threadsafe(run.start, self._loop)
        except RuntimeError:  # a handler found a way to close it
            self._die(HandlerError("the event loop was closed"))
            return True
        return True

    def close(self) -> None:
        self._is_closing = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(LOOP_END_S)
        if not self._thread.is_alive():
            type(self._loop).close(self._loop)

    def _serve(self) -> None:
        """Run the loop on and on, whatever is raised in it."""
        while not self._is_closing and not self._is_dead:
            try:
                self._loop.run_forever()
            except BaseException as error:
                self._blame(error)
            else:
                if self._loop.is_closed():
                    self._die(HandlerError("the event loop was closed"))
        if self._is_dead:
            with contextlib.suppress(Exception):  # it is broken, in whatever way
                type(self._loop).close(self._loop)

    def _blame(self, error: BaseException) -> None:
        """A callback raised what ends a loop: that ends its run, and the loop goes on."""
        handle = _handle_of(error.__traceback__)
        if handle is None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            self._die(error)  # nobody's callback: the loop itself cannot go on
            return
        run = _run_of(handle)
        if run is None:
            alive = [each for each in self._runs if not each.is_over.is_set()]
            run = alive[0] if len(alive) == 1 else None
        if run is not None:
            run.end(error)
        else:
            event(_log, logging.WARNING, "callback.failed", error=repr(error))

    def _die(self, error: BaseException) -> None:
        """No coroutine can go on here: all of them end, and the next one gets another loop."""
        with self._lock:
            self._is_dead = True
            runs, self._runs = self._runs, set()
        event(_log, logging.ERROR, "loop.broken", error=repr(error))
        for run in runs:
            if not run.is_over.is_set():
                run.end(HandlerError(f"the event loop of all coroutines broke: {error!r}"))


def _heed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the run whose callback raised what is no `Exception`; the rest is asyncio's to log."""
    run, error = _run_of(context.get("handle")), context.get("exception")
    if run is not None and error is not None and not isinstance(error, Exception):
        run.end(error)
        return
    loop.default_exception_handler(context)


def _refuse(loop: asyncio.AbstractEventLoop, *names: str) -> None:
    """Have these methods of the loop end the run that calls them."""
    for name in names:

        def refused(name: str = name) -> None:
            error = HandlerError(
                f"loop.{name}(): the event loop is shared by all coroutines of this worker"
            )
            run = _current.get(None)
            if run is not None:
                run.end(error)
            raise error

        with contextlib.suppress(AttributeError):  # a loop of another library may be closed to it
            setattr(loop, name, refused)


def _handle_of(trace: TracebackType | None) -> asyncio.Handle | None:
    """Return the callback in which an error was raised, if the loop's frames show it."""
    while trace is not None:
        seen = trace.tb_frame.f_locals.get("self")
        if isinstance(seen, asyncio.Handle):
            return seen
        trace = trace.tb_next
    return None


def _run_of(handle: object) -> _CoroutineRun | None:
    """Return the run in whose context a callback was scheduled."""
    context = getattr(handle, "_context", None)
    return None if context is None else context.get(_current)
