"""What the handles of tasks need of their client, beyond its public calls."""

from __future__ import annotations

from collections.abc import Callable

from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission
from d8mesh.edge.waits import wait_for
from d8mesh.errors import D8Error
from d8mesh.nodes.client.cancellations import Cancellations
from d8mesh.nodes.client.completion_waiters import LOOK_S, CompletionWaiters
from d8mesh.nodes.client.completions import Call, Completions
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.timeouts import countdown


class Hub:
    """Where the handles of one client's tasks wait, watch, cancel, and leave what to call.

    Args:
        session, board, runner: the client's.
        completions: what is called when its tasks are done.
        cancellations: what it cancels in passing.
        check_alive: raises when nothing comes any more.

    Thread: any.
    """

    def __init__(
        self,
        session: ClientSession,
        waiters: CompletionWaiters,
        runner: ClientRunner,
        *,
        completions: Completions,
        cancellations: Cancellations,
        check_alive: Callable[[], None],
    ) -> None:
        self._session, self._waiters, self._runner = session, waiters, runner
        self._completions, self._cancellations = completions, cancellations
        self._check_alive = check_alive
        waiters.check_may_wait = self.check_may_wait

    @property
    def is_over(self) -> bool:
        """True when nothing comes any more: the client is closed or has died, or is a fork's."""
        try:
            self._check_alive()
        except D8Error:
            return True
        return False

    def check_may_wait(self) -> None:
        """Make sure that waiting makes sense.

        Raises:
            D8Error: it would be in vain, or for ever.
        """
        self._check_alive()
        self.check_is_elsewhere()

    def check_is_elsewhere(self) -> None:
        """Make sure that this is not a callback, whose thread brings all that it could wait for.

        Raises:
            D8Error: it is.
        """
        if self._runner.is_caller:
            raise D8Error(
                "this is called by the client's own thread (a callback): to wait here for "
                "something of the same client would be for ever"
            )

    def wait_for(
        self,
        submission: Submission,
        is_over: Callable[[], bool],
        timeout_s: float | None,
        *,
        what: str,
        task_id: str | None = None,
    ) -> None:
        """Wait for something that arrives of a submission; see `CompletionWaiters.wait_for`."""
        self._waiters.wait_for(submission, is_over, timeout_s, what=what, task_id=task_id)

    def wait_settled(self, submission: Submission, timeout_s: float | None) -> None:
        """Wait until a submission is acknowledged; see `CompletionWaiters.wait_settled`."""
        self._waiters.wait_settled(submission, timeout_s)

    def wait_connected(self, timeout_s: float | None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        left_s, connected = countdown(timeout_s), self._runner.connected
        while not connected.is_set():
            self.check_may_wait()
            left = left_s()
            if left is not None and left <= 0:
                return False
            wait_for(connected, LOOK_S if left is None else min(LOOK_S, left))
        return True

    def watch(self, submission: Submission) -> None:
        """Have the outcome of another's task arrive in `submission`."""
        self._runner.do(lambda now: self._session.watch(submission))

    def when_done(
        self, submission: Submission, index: int, call: Call, is_done: Callable[[], bool]
    ) -> None:
        """Have `call` called when a task is done; see `Completions.add`."""
        self._completions.add(submission, index, call, is_done)

    def never_mind(self, submission: Submission, index: int, call: Call) -> None:
        """Have it called no more."""
        self._completions.discard(submission, index, call)

    def drop(self, submission: Submission, index: int) -> None:
        """Cancel a task that nobody wants any more; return at once."""
        if not submission.states[index] and submission.refusal is None and not self.is_over:
            self._cancellations.add(submission, index)

    def wait_all(self, timeout_s: float | None) -> bool:
        """Wait until all is acknowledged, and what was dropped is cancelled.

        Returns:
            Whether all is acknowledged; False: not in time, or it never will be.
        """
        left_s = countdown(timeout_s)
        is_empty = self._waiters.wait_empty(timeout_s)
        if is_empty and self._session.is_up:
            self.wait_dropped(left_s())
        return is_empty

    def wait_dropped(self, timeout_s: float | None) -> bool:
        """Wait until the orchestrator has heard of all that was dropped; False: not in time."""
        return self._cancellations.wait(timeout_s)
