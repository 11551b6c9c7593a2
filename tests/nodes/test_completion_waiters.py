"""Who waits for something of a submission is woken by that and by nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from d8mesh.core.client.submission import Submission
from d8mesh.errors import NodeClosedError, WaitTimeoutError
from d8mesh.nodes.client.completion_waiters import LOOK_AROUND_S, CompletionWaiters

PATIENCE_S = 60.0


class Waiting:
    """A thread that waits for one thing; who looked whether it is there is written down."""

    def __init__(self, waiters: CompletionWaiters, submission: Submission) -> None:
        self.is_over = False
        self.looks: list[int | None] = []
        self._waiters, self._submission = waiters, submission
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        self._waiters.wait_for(self._submission, self._look, PATIENCE_S, what="a test")

    def _look(self) -> bool:
        self.looks.append(threading.get_ident())
        return self.is_over

    @property
    def own_looks(self) -> int:
        return self.looks.count(self.thread.ident)


@pytest.fixture
def submission() -> Submission:
    return Submission("0" * 16, 0, [])


def test_only_what_is_waited_for_wakes(submission: Submission) -> None:
    waiters = CompletionWaiters(lambda: None)
    waiting = Waiting(waiters, submission)
    until = time.monotonic() + PATIENCE_S
    while waiting.own_looks < 2 and time.monotonic() < until:
        time.sleep(0.001)
    before, begun = waiting.own_looks, time.monotonic()
    for _ in range(20):
        waiters.changed(submission)
        time.sleep(0.01)  # room for the thread to run, had it been woken
    spent_s = time.monotonic() - begun
    assert (
        waiting.own_looks <= before + 1 + spent_s / LOOK_AROUND_S
    )  # it looks by itself now and then
    assert waiters.waiting == 1
    waiting.is_over = True
    waiters.changed(submission)
    waiting.thread.join(PATIENCE_S)
    assert not waiting.thread.is_alive()
    assert waiters.waiting == 0


def test_a_wait_ends_with_its_time_or_with_its_sense(submission: Submission) -> None:
    with pytest.raises(WaitTimeoutError, match=r"a test has not come within 0\.01 s"):
        CompletionWaiters(lambda: None).wait_for(submission, lambda: False, 0.01, what="a test")

    def closed() -> None:
        raise NodeClosedError

    with pytest.raises(NodeClosedError):
        CompletionWaiters(closed).wait_for(submission, lambda: False, None, what="a test")
