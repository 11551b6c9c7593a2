"""Cancels tasks that nobody wants any more, without a thread that waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial
from typing import Final

from d8mesh.core.client.effects import Answered, Output
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Query
from d8mesh.nodes.client.completion_waiters import LOOK_AROUND_S
from d8mesh.nodes.client.questions import Questions
from d8mesh.nodes.client.runner import ClientRunner

#: Cancellations under way at once: the orchestrator is busy with them, and not flooded.
MAX_UNDER_WAY: Final = 64


class Cancellations:
    """What one client cancels in passing.

    Thread: `add` and `wait` may be called from any; the rest happens on the I/O thread.
    """

    def __init__(self, runner: ClientRunner, questions: Questions) -> None:
        self._runner, self._questions = runner, questions
        self._changed = threading.Condition(threading.Lock())
        self._count = 0  #: not yet answered, whatever stage they are at
        self._queue: deque[str] = deque()
        self._under_way = 0

    def add(self, submission: Submission, index: int) -> None:
        """Cancel task `index` as soon as the orchestrator has it; return at once."""
        with self._changed:
            self._count += 1
        self._runner.do(lambda now: self._begin(submission, index, now))

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the orchestrator has heard of all; False: not within `timeout_s`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._count and self._runner.is_running:
                left_s = LOOK_AROUND_S if until is None else until - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, LOOK_AROUND_S))
            return not self._count

    def _begin(self, submission: Submission, index: int, now: float) -> list[Output]:
        if not submission.is_settled:
            again = partial(self._runner.do, lambda now: self._begin(submission, index, now))
            self._runner.on_settled.setdefault(submission, []).append(again)
            return []
        if submission.refusal is not None or submission.states[index]:
            self._end()
            return []
        self._queue.append(submission.task_id(index))
        return self._ask(now)

    def _ask(self, now: float) -> list[Output]:
        out: list[Output] = []
        while self._queue and self._under_way < MAX_UNDER_WAY:
            self._under_way += 1
            request = self._questions.number()
            self._runner.on_answer[request] = self._answered
            out += self._runner.session.ask(
                Query(request, "cancel", {"id": self._queue.popleft()}), now
            )
        return out

    def _answered(self, answered: Answered | None) -> None:
        if answered is None:
            return  # the client ends: who waits sees that
        self._under_way -= 1
        self._end()
        if self._queue:
            self._runner.do(self._ask)

    def _end(self) -> None:
        with self._changed:
            self._count -= 1
            if not self._count:
                self._changed.notify_all()
