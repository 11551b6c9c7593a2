"""Partial output of a task: heard through callbacks, or yielded."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from d8mesh.core.client_effects import Output
from d8mesh.core.client_session import ClientSession
from d8mesh.core.messages import Stream
from d8mesh.errors import WaitTimeoutError
from d8mesh.nodes.client.handle import Ear
from d8mesh.nodes.client.keeping import Kept, Position
from d8mesh.nodes.client.parcels import awaiting
from d8mesh.nodes.client.patience import bounded
from d8mesh.nodes.client.runner import Runner

#: Called with each `Stream`, and with None once the task is finished.
OnEvent: TypeAlias = Callable[[Stream | None], None]


def listen(
    runner: Runner, session: ClientSession, task_id: str, on_event: OnEvent
) -> Callable[[], None]:
    """Hear a task's partial output; return what stops it. See `Client.listen`."""
    parcel = awaiting(task_id)
    hear = Ear(on_event)

    def start(now: float) -> list[Output]:
        runner.listeners.setdefault(task_id, []).append(hear)
        runner.on_arrival[parcel] = finished
        return session.listen(task_id, is_on=True) + session.watch(parcel)

    def finished() -> None:
        heard = runner.listeners.pop(task_id, [])
        session.listen(task_id, is_on=False)  # the orchestrator knows: nothing is sent
        runner.tell(heard, None)

    def stop(now: float) -> list[Output]:
        runner.on_arrival.pop(parcel, None)
        heard = runner.listeners.get(task_id, [])
        if hear in heard:
            heard.remove(hear)
        out = session.unwatch(parcel)
        if not heard and runner.listeners.pop(task_id, None) is not None:
            out += session.listen(task_id, is_on=False)
        return out

    runner.do(start)
    return lambda: runner.do(stop)


def output_of(
    start: Callable[[OnEvent], Callable[[], None]],
    check_alive: Callable[[], None],
    task_id: str,
    timeout_s: float | None,
) -> Iterator[Any]:
    """Yield a task's partial output; see `Task.stream`.

    Args:
        start: begins to listen, and returns what stops it.
        check_alive: raises when waiting has become useless.
        task_id: the task, for the error.
        timeout_s: how long nothing may come; None: for ever.

    Raises:
        WaitTimeoutError: nothing came for so long.
    """
    events: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
    stop = start(events.put)
    position = Position(is_whole=False)
    try:
        while True:
            try:
                stream = events.get(timeout=1.0 if timeout_s is None else bounded(timeout_s))
            except queue.Empty:
                check_alive()
                if timeout_s is None:
                    continue
                raise WaitTimeoutError(f"no output of {task_id} in {timeout_s:g} s") from None
            if stream is None:
                return
            yield from position.read(stream)
    finally:
        stop()


def kept_output(
    kept: Kept, check_alive: Callable[[], None], task_id: str, timeout_s: float | None
) -> Iterator[Any]:
    """Yield a task's partial output out of what is kept of it; as of `output_of`."""
    position, at, timeout_s = Position(is_whole=True), 0, bounded(timeout_s)
    while True:
        at, heard, is_over = kept.read(at, 1.0 if timeout_s is None else timeout_s)
        for stream in heard:
            yield from position.read(stream)
        if is_over:
            return
        if not heard:
            check_alive()
            if timeout_s is not None:
                raise WaitTimeoutError(f"no output of {task_id} in {timeout_s:g} s")
