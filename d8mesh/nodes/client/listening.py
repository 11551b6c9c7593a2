"""Partial output of a task: heard through callbacks, or yielded."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

from d8mesh.core.client_effects import Output
from d8mesh.core.client_session import ClientSession
from d8mesh.core.messages import Stream
from d8mesh.edge.waits import take
from d8mesh.nodes.client.board import LOOK_S, LOOKS_S, STALL_S, say_waiting
from d8mesh.nodes.client.handle import RESTARTED, Ear
from d8mesh.nodes.client.parcels import awaiting
from d8mesh.nodes.client.patience import bounded, timed_out
from d8mesh.nodes.client.reasons import Reason
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
    why: Callable[[str], Reason] = lambda task_id: Reason(""),
) -> Iterator[Any]:
    """Yield a task's partial output; see `Task.stream`.

    Args:
        start: begins to listen, and returns what stops it.
        check_alive: raises when waiting has become useless.
        task_id: the task, for the error.
        timeout_s: how long nothing may come; None: for ever.
        why: says why the task is not further.

    Raises:
        WaitTimeoutError: nothing came for so long.
    """
    events: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
    stop = start(events.put)
    attempt, wait_s = 0, bounded(timeout_s)
    try:
        while True:
            stream = _next_of(events, wait_s, check_alive, why, task_id)
            if stream is None:
                return
            if attempt and stream.attempt != attempt:
                yield RESTARTED
            attempt = stream.attempt
            yield from map(msgspec.msgpack.decode, stream.payloads)
    finally:
        stop()


def _next_of(
    events: queue.SimpleQueue[Stream | None],
    timeout_s: float | None,
    check_alive: Callable[[], None],
    why: Callable[[str], Reason],
    task_id: str,
) -> Stream | None:
    """Return what is heard next; see `output_of`."""
    begun, is_said = time.monotonic(), False
    while True:
        waited_s = time.monotonic() - begun
        left_s = LOOK_S if timeout_s is None else max(0.0, timeout_s - waited_s)
        try:
            return take(events, min(LOOK_S, left_s))
        except queue.Empty:
            check_alive()
        what = f"output of {task_id}"
        if left_s <= LOOK_S and timeout_s is not None:
            because = why(task_id).text if timeout_s >= LOOKS_S else ""
            raise timed_out(what, timeout_s, because)
        if waited_s >= STALL_S and not is_said:
            is_said = True
            say_waiting(what, why(task_id))
