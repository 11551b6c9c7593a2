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
from d8mesh.nodes.client.stream_buffer import NOTHING_KEPT, KeptOutput, StreamBuffer
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


class Outputs:
    """The partial output of the tasks of one client.

    Thread: any.
    """

    def __init__(self, runner: ClientRunner) -> None:
        self._runner, self._waiters = runner, runner.waiters

    @property
    def buffer(self) -> StreamBuffer:
        """What keeps the output of tasks that were submitted with ``listen=True``."""
        return self._runner.stream_buffer

    @property
    def listened(self) -> frozenset[str]:
        """The tasks whose output is listened to."""
        return self._runner.listeners.tasks

    def listen(self, task_id: str, on_stream: OnStream) -> Callable[[], None]:
        """Hear a task's output; see `listen`."""
        return listen(self._runner, task_id, on_stream)

    def of(self, submission: Submission, index: int, timeout_s: float | None) -> Iterator[Any]:
        """Yield the output of a task of a submission; see `Task.stream`.

        Raises:
            WaitTimeoutError: nothing came for `timeout_s`.
        """
        task_id = submission.task_id(index)
        wait = _OutputWait(bounded(timeout_s), self._waiters, task_id)
        kept = self._runner.stream_buffer.of(task_id) if submission.is_listened else None
        if kept is not None:
            yield from _read(kept, wait, is_whole=True)
            submission.raise_refusal()
            return
        if submission.is_listened:
            yield Missed(None)
        self._waiters.wait_settled(submission, timeout_s)  # before, nobody knows the task
        kept = KeptOutput()
        # Of a repeated key the id is now that of the first time.
        stop = self.listen(submission.task_id(index), kept.hear)
        try:
            yield from _read(kept, wait, is_whole=False)
        finally:
            stop()


def _read(kept: KeptOutput, wait: _OutputWait, *, is_whole: bool) -> Iterator[Any]:
    """Yield what is kept of a task's output, and what comes, to its end."""
    position, part = Position(is_whole=is_whole), NOTHING_KEPT
    wait.begin()
    while not part.is_over:
        part = kept.read(part.at, wait.look_s)
        for stream in part.streams:
            yield from position.read(stream)
        if part.streams:
            wait.begin()
        elif not part.is_over:
            wait.look()


class _OutputWait:
    """A wait for the next piece of a task's output, in short looks."""

    def __init__(self, timeout_s: float | None, waiters: CompletionWaiters, task_id: str) -> None:
        self._timeout_s, self._waiters = timeout_s, waiters
        self._task_id = task_id
        self.begin()

    def begin(self) -> None:
        """Wait anew."""
        self._begun, self._is_said = time.monotonic(), False

    @property
    def look_s(self) -> float:
        """How long to wait until the next `look`."""
        if self._timeout_s is None:
            return LOOK_AROUND_S
        left_s = self._begun + self._timeout_s - time.monotonic()
        return min(LOOK_AROUND_S, max(0.0, left_s))

    def look(self) -> None:
        """Nothing came: say so once if that lasts.

        Raises:
            WaitTimeoutError: the time is over.
        """
        self._waiters.check_may_wait()
        what, waited_s = f"output of {self._task_id}", time.monotonic() - self._begun
        if self._timeout_s is not None and waited_s >= self._timeout_s:
            because = self._waiters.why(self._task_id).text if self._timeout_s >= LOOKS_S else ""
            raise timed_out(what, self._timeout_s, because)
        if waited_s >= QUIET_S and not self._is_said:
            self._is_said = True
            log_waiting(what, self._waiters.why(self._task_id))
