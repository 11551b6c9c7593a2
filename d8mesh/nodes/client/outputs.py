"""Partial output of a task: heard through callbacks, or yielded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from d8mesh.core.client.effects import Output
from d8mesh.core.client.submission import Submission, awaiting
from d8mesh.nodes.client.completion_waiters import (
    LOOK_AROUND_S,
    LOOKS_S,
    QUIET_S,
    CompletionWaiters,
    log_waiting,
)
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.stream_buffer import NOTHING_KEPT, KeptOutput
from d8mesh.nodes.client.streams import Missed, OnStream, Position, StreamDeduplicator
from d8mesh.nodes.client.timeouts import bounded, timed_out


def listen(runner: ClientRunner, task_id: str, on_stream: OnStream) -> Callable[[], None]:
    """Hear a task's partial output; return what stops it.

    Args:
        on_stream: called from the I/O thread with each `Stream`, and with None once the task is
            finished.
    """
    submission = awaiting(task_id)
    hear = StreamDeduplicator(on_stream)
    session, listeners = runner.session, runner.listeners

    def start(now: float) -> list[Output]:
        listeners.add(task_id, hear)
        runner.on_arrival[submission] = finished
        return session.listen(task_id, is_on=True) + session.watch(submission)

    def finished() -> None:
        session.listen(task_id, is_on=False)  # the orchestrator knows: nothing is sent
        listeners.finish([task_id])

    def stop(now: float) -> list[Output]:
        runner.on_arrival.pop(submission, None)
        out = session.unwatch(submission)
        if listeners.remove(task_id, hear):
            out += session.listen(task_id, is_on=False)
        return out

    runner.do(start)
    return lambda: runner.do(stop)


def output_of(
    runner: ClientRunner, submission: Submission, index: int, timeout_s: float | None
) -> Iterator[Any]:
    """Yield the output of a task of a submission; see `Task.stream`."""
    task_id, timeout_s = submission.task_id(index), bounded(timeout_s)
    kept = runner.stream_buffer.of(task_id) if submission.is_listened else None
    if kept is not None:
        yield from _read(kept, runner.waiters, task_id, timeout_s, is_whole=True)
        submission.raise_refusal()
        return
    if submission.is_listened:
        yield Missed(None)
    runner.waiters.wait_settled(submission, timeout_s)  # before, nobody knows the task
    kept = KeptOutput(has_one_reader=True)
    # Of a repeated key the id is now that of the first time.
    stop = listen(runner, submission.task_id(index), kept.hear)
    try:
        yield from _read(kept, runner.waiters, task_id, timeout_s, is_whole=False)
    finally:
        stop()


def _read(
    kept: KeptOutput,
    waiters: CompletionWaiters,
    task_id: str,
    timeout_s: float | None,
    *,
    is_whole: bool,
) -> Iterator[Any]:
    """Yield what is kept of a task's output, and what comes, to its end; wait in short looks."""
    position, part, what = Position(is_whole=is_whole), NOTHING_KEPT, f"output of {task_id}"
    begun, is_said = time.monotonic(), False
    while not part.is_over:
        left_s = LOOK_AROUND_S if timeout_s is None else begun + timeout_s - time.monotonic()
        part = kept.read(part.at, min(LOOK_AROUND_S, left_s))
        for stream in part.streams:
            yield from position.read(stream)
        if part.streams:
            begun, is_said = time.monotonic(), False
        elif not part.is_over:
            waiters.check_may_wait()
            waited_s = time.monotonic() - begun
            if timeout_s is not None and waited_s >= timeout_s:
                why = waiters.why(task_id).text if timeout_s >= LOOKS_S else ""
                raise timed_out(what, timeout_s, why)
            if waited_s >= QUIET_S and not is_said:
                is_said = True
                log_waiting(what, waiters.why(task_id))
