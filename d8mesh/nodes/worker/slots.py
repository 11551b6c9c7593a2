"""Slots: the threads that run handlers, each taking the next attempt when it is free."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from d8mesh.core.json_model import packed_json
from d8mesh.core.messages import FAILED
from d8mesh.core.worker_effects import DROPPED, UNAVAILABLE, Attempt, Ended, Piece, Running
from d8mesh.edge.child import Child
from d8mesh.edge.sockets import Waker
from d8mesh.errors import BackendUnavailableError, TaskCancelledError
from d8mesh.handlers import endings

#: How often a slot that waits for a coroutine or a process looks whether it is cancelled.
LOOK_S: Final = 0.1
#: A slot whose service is busy or down takes nothing for this long.
BUSY_PAUSE_S: Final = 1.0
#: A type is quick when so many attempts in a row took no longer than this.
QUICK_S: Final = 0.001
QUICK_IN_A_ROW: Final = 20

_decode: Final = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class Registered:
    """One handler: `function` is set if it runs in a process (``MODULE:FUNCTION``)."""

    call: Callable[..., object]
    takes_context: bool
    function: str | None = None


class Bell:
    """Wakes the I/O thread, at no cost while it is awake."""

    def __init__(self, waker: Waker) -> None:
        self.is_asleep = False
        self._waker = waker

    def ring(self) -> None:
        """Let the I/O thread look at what is there. Thread: any."""
        if self.is_asleep:
            self._waker.wake()


class Context:
    """What a running handler may ask and tell (`d8mesh.handlers.TaskContext`)."""

    __slots__ = ("_attempt", "_chunks", "_deadline", "_slots")

    def __init__(self, slots: Slots, attempt: Attempt, started: float) -> None:
        self._slots = slots
        self._attempt = attempt
        self._deadline = started + attempt[2]
        self._chunks = 0

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self._attempt[4]

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return max(1, int.from_bytes(self._attempt[5][4:6], "big"))

    @property
    def is_cancelled(self) -> bool:
        """True once the attempt is no longer wanted."""
        return self._attempt[5] in self._slots.aborted

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline; negative when past."""
        return self._deadline - time.monotonic()

    def emit(self, chunk: object) -> None:
        """Send partial output to whoever listens right now.

        Raises:
            TaskCancelledError: the task was cancelled: stop.
        """
        self.raise_if_cancelled()
        self.pass_on(chunk)

    def pass_on(self, chunk: object, payload: bytes | None = None) -> None:
        """Send partial output that may be packed already."""
        link, _, _, is_listened, task_id, token, _ = self._attempt
        if is_listened or task_id in self._slots.listened:
            piece = packed_json(chunk, "the output") if payload is None else payload
            self._slots.pieces.append((link, task_id, token, self._chunks, piece))
            self._slots.bell.ring()
        self._chunks += 1

    def raise_if_cancelled(self) -> None:
        """Raise `TaskCancelledError` if the task was cancelled."""
        if self.is_cancelled:
            raise TaskCancelledError


class Slots:
    """The threads, what waits for them, and what they have finished.

    Args:
        count: how many attempts run at once.
        handlers: by task type; may be added to at any time.
        worker_id: goes into the results; may change.
        bell: rung when something has ended.

    Thread: `start_all` to `close` on the I/O thread; the rest runs on the slots' own.
    """

    def __init__(
        self, count: int, handlers: dict[str, Registered], worker_id: str, bell: Bell
    ) -> None:
        self.worker_id = worker_id
        self.bell = bell
        self.ended: deque[Ended] = deque()
        self.pieces: deque[Piece] = deque()
        self.aborted: set[bytes] = set()
        self.listened: set[str] = set()
        self._handlers = handlers
        #: an event: wait for it, in place of an attempt; None: end
        self._ready: queue.SimpleQueue[Attempt | threading.Event | None] = queue.SimpleQueue()
        #: what each thread is at; the last is the I/O thread, see `run_here`
        self._current: list[Running | None] = [None] * (count + 1)
        self._quick: dict[str, int] = {}
        self._coroutines = _Coroutines()
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}", daemon=True)
            for number in range(count)
        ]

    def start_all(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, attempts: list[Attempt]) -> None:
        """Run these when slots are free."""
        put = self._ready.put
        for attempt in attempts:
            put(attempt)

    def is_quick(self, kind_of_task: str) -> bool:
        """Tell whether an attempt of this type may run on the I/O thread.

        Not with one slot: a handler may count on one thread for all that it is given.
        """
        handler = self._handlers.get(kind_of_task)
        if handler is None or handler.function is not None or len(self._threads) < 2:
            return False
        return self._quick.get(kind_of_task, 0) >= QUICK_IN_A_ROW

    def run_here(self, attempt: Attempt) -> None:
        """Run an attempt in place of a slot; it ends in `ended`. Thread: the I/O thread."""
        self._run(len(self._threads), attempt, {})

    def keep_one(self) -> threading.Event:
        """Have a slot wait for the event: the I/O thread that is at `run_here` is replaced."""
        is_free = threading.Event()
        self._ready.put(is_free)
        return is_free

    def take_back(self, link: str, count: int) -> list[Attempt]:
        """Return up to `count` attempts of `link` that have not started, newest first."""
        waiting: list[Attempt] = []
        places: list[threading.Event] = []
        try:
            while True:
                attempt = self._ready.get_nowait()
                if isinstance(attempt, threading.Event):
                    places.append(attempt)
                elif attempt is not None:
                    waiting.append(attempt)
        except queue.Empty:
            pass
        for place in places:
            self._ready.put(place)
        own = [attempt for attempt in waiting if attempt[0] == link]
        given = own[max(0, len(own) - count) :] if count else []
        tokens = {attempt[5] for attempt in given}
        self.put([attempt for attempt in waiting if attempt[5] not in tokens])
        return given[::-1]

    def heed(self, task_ids: Iterable[str], *, is_on: bool) -> None:
        """Pass partial output of these tasks on, or no longer."""
        if is_on:
            self.listened.update(task_ids)
        else:
            self.listened.difference_update(task_ids)

    def running(self) -> list[Running]:
        """Return what the slots are at."""
        return [running for running in self._current if running is not None]

    def close(self, timeout_s: float) -> None:
        """Let the threads end when their handlers do; wait at most `timeout_s` in all."""
        for _ in self._threads:
            self._ready.put(None)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._coroutines.close()

    # ---------------------------------------------------------------- the slots' threads

    def _serve(self, number: int) -> None:
        get, run, bell = self._ready.get, self._run, self.bell
        children: dict[str, Child] = {}
        while (attempt := get()) is not None:
            if isinstance(attempt, threading.Event):
                attempt.wait()
                continue
            run(number, attempt, children)
            if bell.is_asleep:
                bell.ring()
        for child in children.values():
            child.close()

    def _run(self, number: int, attempt: Attempt, children: dict[str, Child]) -> None:
        clock = time.monotonic
        started = clock()
        link, kind_of_task, _, _, task_id, token, payload = attempt
        self._current[number] = Running(attempt, started)
        context = Context(self, attempt, started)
        handler = self._handlers.get(kind_of_task)
        if self.aborted and token in self.aborted:
            kind, result = DROPPED, b""
        elif handler is None:
            text = f"this worker has no handler for {kind_of_task!r}"
            kind, result = endings.of_error(text, self.worker_id, 0.0)
        elif handler.function is not None:
            kind, result = self._run_process(handler.function, attempt, context, children)
        else:
            try:
                data = _decode(payload)
                value = handler.call(data, context) if handler.takes_context else handler.call(data)
                if type(value) not in endings.PLAIN and inspect.iscoroutine(value):
                    value = self._coroutines.run(value, context)
                took_s = clock() - started
                kind, result = endings.of_value(value, self.worker_id, round(took_s, 6))
            except BaseException as error:  # whatever a handler raises, the slot goes on
                kind, result = self._failed(error, context, started)
        took_s = clock() - started
        if handler is not None:
            is_quick = took_s <= QUICK_S and handler.function is None
            self._quick[kind_of_task] = self._quick.get(kind_of_task, 0) + 1 if is_quick else 0
        self.ended.append((link, task_id, token, kind, result, took_s))
        self._current[number] = None

    def _failed(self, error: BaseException, context: Context, started: float) -> endings.Ending:
        is_cancel = isinstance(error, (TaskCancelledError, asyncio.CancelledError))
        if is_cancel and context.is_cancelled:
            return DROPPED, b""
        if isinstance(error, BackendUnavailableError):
            self._aborted_or_pause(context)
            return UNAVAILABLE, b""
        return endings.of_exception(error, self.worker_id, round(time.monotonic() - started, 6))

    def _aborted_or_pause(self, context: Context) -> None:
        """Hold the slot for a moment: a task given back at once may come back at once."""
        until = time.monotonic() + BUSY_PAUSE_S
        while time.monotonic() < until and not context.is_cancelled:
            time.sleep(LOOK_S)

    def _run_process(
        self, function: str, attempt: Attempt, context: Context, children: dict[str, Child]
    ) -> endings.Ending:
        """Run one attempt in this slot's child for the function; kill it when time is over."""
        frame: list[object] = [
            attempt[4],
            context.attempt,
            attempt[2],
            self.worker_id,
            attempt[6],
        ]
        child = children.get(function)
        if child is None or not child.tell(frame):
            if child is not None:
                child.kill()
            try:
                child = children[function] = Child(function)
            except OSError as error:
                return endings.of_exception(error, self.worker_id, 0.0)
            child.tell(frame)  # if it is gone already, that is what it says next
        ending = self._await_child(child, attempt, context)
        if ending is None:
            return endings.of_error(
                f"the handler's process ended (exit code {child.exit_code})", self.worker_id, 0.0
            )
        return ending

    def _await_child(
        self, child: Child, attempt: Attempt, context: Context
    ) -> endings.Ending | None:
        while True:
            try:
                said = child.said.get(timeout=LOOK_S)
            except queue.Empty:
                said = []
            if said is None:
                child.kill()
                return None
            if said and said[0] == "end":
                return int(said[1]), bytes(said[2])
            if said and said[0] == "chunk":
                context.pass_on(None, bytes(said[1]))
            if context.is_cancelled:
                child.kill()
                return DROPPED, b""
            if context.remaining_s <= 0:
                child.kill()
                text = f"TimeoutError: not finished after {attempt[2]:g} s"
                kind, payload = endings.of_error(text, self.worker_id, attempt[2])
                assert kind == FAILED
                return kind, payload


class _Coroutines:
    """One event loop, on a thread of its own, for handlers that are coroutines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, object], context: Context) -> object:
        """Return what the coroutine returns; cancel it when the task is."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
                if context.is_cancelled:
                    future.cancel()
                    raise TaskCancelledError from None

    def close(self) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(1.0)
            if not thread.is_alive():
                loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="coroutines", daemon=True
                )
                self._thread.start()
            return self._loop
