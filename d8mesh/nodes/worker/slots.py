"""Slots: the threads that run handlers, each taking the next attempt when it is free."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from d8mesh.core.protocol.messages import FAILED, SUCCEEDED, Placement
from d8mesh.core.worker.effects import DROPPED, UNAVAILABLE, Attempt, Ended, OutputPiece, Running
from d8mesh.core.worker.session import OVERDUE_S
from d8mesh.edge.child import Child
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import BackendUnavailableError, TaskCancelledError
from d8mesh.handlers import results, tracebacks
from d8mesh.handlers.forks import FORKS, end_copy
from d8mesh.handlers.retrying import ANY, AttemptEnd, Retries
from d8mesh.nodes.worker.aborted import Aborted
from d8mesh.nodes.worker.coroutines import Coroutines
from d8mesh.nodes.worker.failures import Failures
from d8mesh.nodes.worker.importable import prove
from d8mesh.nodes.worker.placed_threads import MAX_PLACED_THREADS, PlacedThreads

#: How often a slot that waits for a process looks whether it is cancelled.
CANCELLED_LOOK_S: Final = 0.1
#: A slot whose service is busy or down takes nothing for this long.
BUSY_PAUSE_S: Final = 1.0
#: Partial output that waits for the I/O thread; beyond it `emit` waits, but no longer than this.
MAX_WAITING_PIECES_BYTES: Final = 16 * 1024 * 1024
MAX_EMIT_S: Final = 1.0
#: Partial output goes together with what came within so long after the last; the first piece of an
#: attempt goes at once.
PIECES_TOGETHER_S: Final = 0.004
#: A type is quick when so many attempts in a row took no longer than this.
QUICK_S: Final = 0.001
QUICK_IN_A_ROW: Final = 20
#: Why an attempt is given back that no thread can be started for.
NO_THREAD: Final = b"this machine can start no more threads"

_decode: Final = msgspec.msgpack.Decoder().decode
#: Values of these types are no awaitables: asking each would cost the hot path more.
_VALUES: Final = results.PLAIN | {dict, list, tuple, int, float}


@dataclass(frozen=True, slots=True)
class Registered:
    """One handler: `function` is set if it runs in a process (``MODULE:FUNCTION``)."""

    call: Callable[..., object]
    takes_context: bool
    function: str | None = None
    retries: Retries = ANY


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
        self._deadline = started + attempt.timeout_s
        self._chunks = 0

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self._attempt.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return max(1, int.from_bytes(self._attempt.token[4:6], "big"))

    @property
    def placement(self) -> Placement | None:
        """The service that the orchestrator chose for it, if it is one that services answer."""
        return self._attempt.placement

    @property
    def is_cancelled(self) -> bool:
        """True once the attempt is no longer wanted."""
        return self._attempt.token in self._slots.aborted

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline; negative when past."""
        return self._deadline - time.monotonic()

    def emit(self, chunk: object) -> None:
        """Send partial output to whoever listens right now; see `TaskContext.emit`."""
        self.raise_if_cancelled()
        self.pass_on(results.chunk_of(chunk))

    def pass_on(self, payload: bytes) -> None:
        """Send partial output that is packed already."""
        attempt, slots = self._attempt, self._slots
        is_heard, is_due = attempt.is_listened or attempt.id in slots.listened, False
        with slots.emitting:  # its number is its place, whatever threads emit
            if is_heard:
                slots.emitting.wait_for(slots.has_room_for_pieces, MAX_EMIT_S)
                piece = (attempt.link, attempt.id, attempt.token, self._chunks, payload)
                is_due = slots.add_piece(piece, is_first=self._chunks == 0)
            self._chunks += 1
        if is_heard and is_due:
            slots.bell.ring()

    def on_cancel(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have something done at once when it is cancelled; see `TaskContext.on_cancel`."""
        return self._slots.aborted.on_add(self._attempt.token, call)

    def raise_if_cancelled(self) -> None:
        """Raise `TaskCancelledError` if the task was cancelled."""
        if self.is_cancelled:
            raise TaskCancelledError


class Slots:
    """The threads, what waits for them, and what they have finished.

    Args:
        handlers: by task type; may be added to at any time.
        worker_id: goes into the results; may change.

    Thread: `start_all` to `close` on the I/O thread; the rest runs on the slots' own.
    """

    def __init__(
        self, count: int, handlers: dict[str, Registered], worker_id: str, bell: Bell
    ) -> None:
        self.worker_id = worker_id
        self.bell = bell
        self.ended: deque[Ended] = deque()
        self.pieces: deque[OutputPiece] = deque()
        self.pieces_bytes = 0
        #: when those that wait are to go, and when the last ones went (monotonic seconds)
        self.pieces_due = self._pieces_sent = 0.0
        #: guards the pieces; notified when they have been taken
        self.emitting = threading.Condition(threading.Lock())
        self.aborted = Aborted()
        self.listened: set[str] = set()
        self._handlers = handlers
        #: an event: wait for it, in place of an attempt; None: end
        self._ready: queue.SimpleQueue[Attempt | threading.Event | None] = queue.SimpleQueue()
        #: what each thread is at: the slots, the I/O thread (see `run_here`), those beside them
        self._current: list[Running | None] = [None] * (count + 1 + MAX_PLACED_THREADS)
        self._quick: dict[str, int] = {}
        self._coroutines = Coroutines()
        self.failures = Failures()
        self._is_over = False
        #: as many as there were; with more, this is a copy that a handler forked
        self._forks = len(FORKS)
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}", daemon=True)
            for number in range(count)
        ]
        self._placed = PlacedThreads(self._run_placed)

    def start_all(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, attempts: list[Attempt]) -> None:
        """Run these when slots are free."""
        put = self._ready.put
        for attempt in attempts:
            put(attempt)

    def put_placed(self, attempts: Iterable[Attempt]) -> None:
        """Run these now, beside the slots; give back what there can be no thread for."""
        for attempt in attempts:
            if not self._placed.put(attempt):
                ended = (attempt.link, attempt.id, attempt.token, UNAVAILABLE, NO_THREAD, 0.0)
                self.ended.append(ended)

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

    def take_back(self, link: str, count: int, *, is_of_all: bool = False) -> list[Attempt]:
        """Return up to `count` attempts of `link` that have not started, newest first.

        Args:
            is_of_all: also all those of `link` that wait to run at a service.
        """
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
        own = [attempt for attempt in waiting if attempt.link == link]
        given = own[max(0, len(own) - count) :] if count else []
        tokens = {attempt.token for attempt in given}
        self.put([attempt for attempt in waiting if attempt.token not in tokens])
        return given[::-1] + (self._placed.take_back(link) if is_of_all else [])

    def heed(self, task_ids: Iterable[str], *, is_on: bool) -> None:
        """Pass partial output of these tasks on, or no longer."""
        if is_on:
            self.listened.update(task_ids)
        else:
            self.listened.difference_update(task_ids)

    def add_piece(self, piece: OutputPiece, *, is_first: bool) -> bool:
        """Have partial output wait for the I/O thread; `emitting` is held.

        Args:
            is_first: of its attempt: it goes at once.

        Returns:
            Whether that thread must be told: it does not know of any piece, or thinks it has time.
        """
        is_news = is_first or not self.pieces
        if is_news:
            due = 0.0 if is_first else self._pieces_sent + PIECES_TOGETHER_S
            self.pieces_due = min(due, self.pieces_due) if self.pieces else due
        self.pieces.append(piece)
        self.pieces_bytes += len(piece[4])
        return is_news

    def has_room_for_pieces(self) -> bool:
        """Tell whether partial output may wait here; `emitting` is held."""
        return self.pieces_bytes < MAX_WAITING_PIECES_BYTES

    def take_pieces(self) -> list[OutputPiece]:
        """Return the partial output that waits here. Thread: the I/O thread."""
        with self.emitting:
            taken = list(self.pieces)
            self.pieces.clear()
            self.pieces_bytes = 0
            self._pieces_sent = time.monotonic()
            self.emitting.notify_all()
        return taken

    def running(self) -> list[Running]:
        """Return what the slots are at."""
        return [running for running in self._current if running is not None]

    def look(self, now: float) -> None:
        """Tell of handlers that are past their time, before the session gives them up."""
        self.failures.flush()
        for number, running in enumerate(self._current):
            if running is None or running.attempt.token in self.aborted:
                continue
            attempt, started = running
            handler = self._handlers.get(attempt.type)
            is_own = handler is not None and handler.function is not None
            if now - started > attempt.timeout_s + OVERDUE_S and not is_own:
                self._tell_overdue(number, attempt, started)

    def close(self, timeout_s: float) -> None:
        """Let the threads end when their handlers do; wait at most `timeout_s` in all."""
        for _ in self._threads:
            self._ready.put(None)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._placed.close(until)
        self._is_over = True  # what still runs in a process ends now
        self._coroutines.close()
        self.failures.flush(is_last=True)

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

    def _run_placed(self, number: int, attempt: Attempt, children: dict[str, Child]) -> None:
        self._run(len(self._threads) + 1 + number, attempt, children)
        if self.bell.is_asleep:
            self.bell.ring()

    def _run(self, number: int, attempt: Attempt, children: dict[str, Child]) -> None:
        clock = time.monotonic
        started = clock()
        kind_of_task, token = attempt.type, attempt.token
        self._current[number] = Running(attempt, started)
        context = Context(self, attempt, started)
        handler = self._handlers.get(kind_of_task)
        if self.aborted and token in self.aborted:
            kind, result = DROPPED, b""
        elif handler is None:
            text = f"this worker has no handler for {kind_of_task!r}"
            kind, result = results.of_error(text, self.worker_id, 0.0)
        elif handler.function is not None:
            kind, result = self._run_process(handler, attempt, context, children)
        else:
            try:
                data = _decode(attempt.payload)
                value = handler.call(data, context) if handler.takes_context else handler.call(data)
                if type(value) not in _VALUES and inspect.isawaitable(value):
                    waited = cast("Awaitable[object]", value)
                    value = self._coroutines.run(waited, lambda: context.is_cancelled)
                took_s = clock() - started
                kind, result = results.of_value(value, self.worker_id, round(took_s, 6))
                if kind == FAILED:
                    kind, result = handler.retries.applied((kind, result), None, context.attempt)
            except BaseException as error:  # whatever a handler raises, the slot goes on
                kind, result = self._raised(error, handler, context, started)
        if len(FORKS) != self._forks:  # the handler forked, and ended twice
            end_copy(None)
        took_s = clock() - started
        if handler is not None:
            is_quick = took_s <= QUICK_S and handler.function is None
            self._quick[kind_of_task] = self._quick.get(kind_of_task, 0) + 1 if is_quick else 0
        if kind != SUCCEEDED and kind >= 0:
            self._note(number, attempt, context, result)
        self.ended.append((attempt.link, attempt.id, token, kind, result, took_s))
        self._current[number] = None

    def _note(self, number: int, attempt: Attempt, context: Context, result: bytes) -> None:
        thread = self._thread_at(number)
        slot = "io" if thread is None else thread.name
        with contextlib.suppress(Exception):  # of a log handler, or of who is told
            self.failures.note(attempt, number=context.attempt, slot=slot, payload=result)

    def _thread_at(self, number: int) -> threading.Thread | None:
        """Return the thread with that place in `_current`; None: the I/O thread, or it ended."""
        if number < len(self._threads):
            return self._threads[number]
        return self._placed.threads.get(number - len(self._threads) - 1)

    def _tell_overdue(self, number: int, attempt: Attempt, started: float) -> None:
        """Tell of a handler that goes on, and where it is."""
        thread = self._thread_at(number)
        frame = None if thread is None else sys._current_frames().get(thread.ident or 0)
        where = "" if frame is None else tracebacks.stack_text(frame)
        text = f"TimeoutError: not finished after {attempt.timeout_s:g} s"
        _, result = results.of_error(text, self.worker_id, attempt.timeout_s, traceback=where)
        self._note(number, attempt, Context(self, attempt, started), result)

    def _raised(
        self, error: BaseException, handler: Registered, context: Context, started: float
    ) -> AttemptEnd:
        """Return how an attempt ends whose handler raised, whatever the error is made of."""
        if len(FORKS) != self._forks:
            end_copy(error)
        try:
            ending = self._failed(error, context, started)
            return handler.retries.applied(ending, error, context.attempt)
        except BaseException:
            took_s = round(time.monotonic() - started, 6)
            return results.of_untellable(error, self.worker_id, took_s)

    def _failed(self, error: BaseException, context: Context, started: float) -> AttemptEnd:
        is_cancel = isinstance(error, (TaskCancelledError, asyncio.CancelledError))
        if is_cancel and context.is_cancelled:
            return DROPPED, b""
        if isinstance(error, BackendUnavailableError):
            self._pause(context)
            return UNAVAILABLE, tracebacks.message_of(error).encode("utf-8", "replace")
        return results.of_exception(error, self.worker_id, round(time.monotonic() - started, 6))

    def _pause(self, context: Context) -> None:
        """Hold the slot for a moment: a task given back at once may come back at once.

        One that was placed comes back to another service, or when this one is well.
        """
        if context.placement is not None:
            return
        until = time.monotonic() + BUSY_PAUSE_S
        while time.monotonic() < until and not context.is_cancelled:
            time.sleep(CANCELLED_LOOK_S)

    def _run_process(
        self, handler: Registered, attempt: Attempt, context: Context, children: dict[str, Child]
    ) -> AttemptEnd:
        """Run one attempt in this slot's child for the handler; kill it when time is over."""
        try:
            child = self._child_for(handler, attempt, context, children)
        except Exception as error:  # no process, no memory, or not the handler it was
            return results.of_exception(error, self.worker_id, 0.0)
        ending = self._await_child(child, attempt, context)
        if ending is None:
            child.kill()
            took_s = round(attempt.timeout_s - context.remaining_s, 6)
            text = f"the handler's process ended ({child.ending})"
            return results.of_error(text, self.worker_id, took_s)
        return ending

    def _child_for(
        self, handler: Registered, attempt: Attempt, context: Context, children: dict[str, Child]
    ) -> Child:
        """Return the child that has been told of the attempt: a warm one, if it lives.

        Raises:
            HandlerError: it would import something else.
            OSError: it cannot be started.
        """
        function = handler.function
        assert function is not None
        frame: list[object] = [
            attempt.token,
            attempt.id,
            context.attempt,
            context.remaining_s,
            self.worker_id,
            attempt.payload,
            handler.retries.named(),
            attempt.placement,
        ]
        child = children.pop(function, None)
        if child is None or not child.tell(frame):
            if child is not None:
                child.kill()
            prove(handler.call, function)
            child = Child(function)
            child.tell(frame)  # if it is gone already, that is what it says next
        children[function] = child
        return child

    def _await_child(self, child: Child, attempt: Attempt, context: Context) -> AttemptEnd | None:
        """Return how the attempt ended; None: the child did. Frames of others are dropped."""
        token = attempt.token
        while True:
            try:
                said = child.said.get(timeout=CANCELLED_LOOK_S)
            except queue.Empty:
                said = []
            match said:
                case None:
                    return None
                case ["end", own, int(kind), bytes(result)] if own == token:
                    if kind == UNAVAILABLE:
                        self._pause(context)
                    return kind, result
                case ["chunk", own, bytes(payload)] if own == token:
                    context.pass_on(payload)
                case ["broken", str(text), str(traceback)]:
                    return results.of_error(text, self.worker_id, 0.0, traceback=traceback)
            if context.is_cancelled or self._is_over:
                child.kill()
                return DROPPED, b""
            if context.remaining_s <= 0:
                child.kill()
                text = f"TimeoutError: not finished after {attempt.timeout_s:g} s"
                return results.of_error(text, self.worker_id, attempt.timeout_s)
