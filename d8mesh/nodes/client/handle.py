"""A task as its submitter sees it: a handle that waits, streams, cancels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Final, Protocol

from d8mesh.core.client.submission import Submission, awaiting
from d8mesh.core.protocol.messages import CANCELLED_STATE
from d8mesh.errors import D8Error, TaskCancelledError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.node import ClientNode
from d8mesh.nodes.client.results import Result, is_cancelled_already, readable, result_of
from d8mesh.nodes.client.timeouts import DEFAULT_QUESTION_S, bounded, countdown, takes_timeout_s

#: How long `Task.cancel` waits for the outcome beyond the answer: they come together.
OUTCOME_S: Final = 2.0


class NodeOwner(Protocol):
    """What a `Client` is to the handles of its tasks."""

    @property
    def node(self) -> ClientNode:
        """Its session, where they wait."""

    def close(self, timeout: float | None = ...) -> None:
        """As `Client.close`."""


class Task:
    """A handle of one task, used as a `concurrent.futures.Future` is.

    It pickles as its id: unpickled, it opens itself through a client of its process's own when
    it is first used (`Client()`: the settings of the environment); `Client.task` opens it through
    another. A copy of a handle is the handle itself.

    Thread: every method may be called from any thread.
    """

    __slots__ = ("_client", "_index", "_submission")

    #: returns the client that the unpickled handles of this process share; `client` sets it
    own_client: ClassVar[Callable[[], NodeOwner]]

    def __init__(self, client: NodeOwner | None, submission: Submission, index: int) -> None:
        self._client = client
        self._submission = submission
        self._index = index

    @property
    def id(self) -> str:
        """The task's id, final from the start; it opens the task in any other process."""
        return self._submission.task_id(self._index)

    @property
    def submission(self) -> Submission:
        """What it travelled in."""
        return self._submission

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the orchestrator says of the submit: that no worker offers the type, say.

        Empty before the acknowledgement.
        """
        return self._submission.warnings

    @property
    def index(self) -> int:
        """Which of its submission's tasks it is."""
        return self._index

    @property
    def client(self) -> NodeOwner:
        """The `Client` that it waits with; of an unpickled one that of this process."""
        if self._client is None:
            self._client = Task.own_client()
            self._client.node.watch(self._submission)
        return self._client

    @property
    def node(self) -> ClientNode:
        """Its client's."""
        return self.client.node

    def __repr__(self) -> str:
        return f"<Task {self.id}>"

    def __reduce__(self) -> tuple[object, ...]:
        return unpickled, (self.id,)

    def __copy__(self) -> Task:
        return self

    def __deepcopy__(self, memo: object) -> Task:
        return self

    def done(self) -> bool:
        """Return whether `result` returns or raises at once.

        It does when the outcome has arrived here, when the submit was refused, and when the
        client is closed: then nothing will arrive any more.
        """
        return self._is_known() or self.node.is_over

    def _is_known(self) -> bool:
        return self._submission.is_known(self._index)

    def cancelled(self) -> bool:
        """Return whether it is known here that the task was cancelled."""
        return self._submission.states[self._index] == CANCELLED_STATE

    @takes_timeout_s
    def result(self, timeout: float | None = None) -> Result:
        """Wait for the recorded result and return it: an object with ``success`` true.

        Raises:
            TaskFailedError: the task failed; the error carries its ``result``.
            TaskCancelledError: the task was cancelled.
            TaskRejectedError: the submit was refused; nothing was accepted.
            UnknownTaskError: the orchestrator does not know the task.
            WaitTimeoutError: `timeout` is over; the task goes on.
            NodeClosedError: the client is closed, and the outcome had not arrived.
        """
        return self._outcome(timeout)

    def take(self, timeout_s: float | None) -> Result:
        """Return `result`, and forget it: for handles that nobody else has."""
        result = self._outcome(timeout_s)
        self._submission.payloads[self._index] = None
        return result

    def _outcome(self, timeout_s: float | None) -> Result:
        submission, index = self._submission, self._index
        try:
            if not submission.states[index]:
                self._wait(timeout_s, f"the result of {self.id}", self.id)
            if submission.refusal is not None:
                submission.raise_refusal()
        except D8Error as error:
            error.task_id = self.id
            raise
        payload = submission.payloads[index] or b""
        return result_of(submission.states[index], payload, submission, index)

    def _wait(self, timeout_s: float | None, what: str, task_id: str | None = None) -> None:
        """Wait until the outcome is known."""
        waiters = self.node.waiters
        waiters.wait_for(self._submission, self._is_known, timeout_s, what=what, task_id=task_id)

    @takes_timeout_s
    def exception(self, timeout: float | None = None) -> D8Error | None:
        """Wait for the outcome; return what `result` raises, None if it returns.

        Raises:
            TaskCancelledError: the task was cancelled.
            WaitTimeoutError: `timeout` is over; the task goes on.
            InvalidTaskError: `timeout` is no number of seconds.
        """
        bounded(timeout)
        try:
            self.result(timeout)
        except (TaskCancelledError, WaitTimeoutError):
            raise
        except D8Error as error:
            return error
        return None

    def add_done_callback(self, fn: Callable[[Task], object]) -> None:
        """Have ``fn(task)`` called, once, as soon as `done` is true.

        It is called at once by this thread if it is so now, else by the client's I/O thread: it
        has to be quick, and must not wait for anything of the same client. What it raises is
        logged. When the client is closed before the outcome has come, it is called too.
        """
        self.when_done(partial(fn, self))

    def when_done(self, call: Callable[[], object]) -> None:
        """Have `call` called as `add_done_callback` says."""
        self.node.completions.add(self._submission, self._index, call, self.done)

    @takes_timeout_s
    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until the task is acknowledged: safely on the orchestrator's disk.

        Raises:
            TaskRejectedError: the submit was refused.
            WaitTimeoutError: `timeout` is over.
        """
        try:
            self.node.waiters.wait_settled(self._submission, timeout)
        except D8Error as error:
            error.task_id = self.id
            raise

    def _ask(self, what: str, timeout_s: float, **more: object) -> dict[str, Any]:
        try:
            return self.node.ask(what, {"id": self.id, **more}, timeout_s)
        except D8Error as error:
            error.task_id = self.id
            raise

    @takes_timeout_s
    def status(
        self, timeout: float | None = DEFAULT_QUESTION_S, *, full: bool = False
    ) -> dict[str, Any]:
        """Return the documented status body, as ``GET /api/tasks/status/{id}`` does.

        Args:
            full: with ``data``, the task's input, and ``history``, all that went wrong so far.

        Raises:
            TaskRejectedError: the submit was refused.
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
        """
        timeout = DEFAULT_QUESTION_S if timeout is None else timeout
        self.wait_accepted(timeout)  # before, nobody knows the task
        return readable(self._ask("status", timeout, **({"full": True} if full else {})))

    @takes_timeout_s
    def cancel(self, timeout: float | None = DEFAULT_QUESTION_S) -> bool:
        """Cancel the task, also a running one; return whether it is cancelled now.

        False: it had ended otherwise before. A running handler is told (`TaskContext`), and what
        it still returns is dropped.

        Raises:
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
            NodeClosedError: the client is closed.
        """
        timeout = DEFAULT_QUESTION_S if timeout is None else timeout
        left_s = countdown(timeout)
        if (is_cancelled := is_cancelled_already(self._submission, self._index)) is not None:
            return is_cancelled
        try:
            self.wait_accepted(left_s())
        except TaskRejectedError:
            return False
        if self._ask("cancel", timeout)["state"] != "cancelled":
            return False
        # Its outcome is on the way: `cancelled` is to be true when this returns.
        left = left_s()
        with contextlib.suppress(WaitTimeoutError):
            wait_s = OUTCOME_S if left is None else min(left, OUTCOME_S)
            self._wait(wait_s, f"the outcome of {self.id}")
        return True

    @takes_timeout_s
    def stream(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield partial output as it comes, until the task is finished.

        Of a task that was submitted with ``listen=True`` nothing is missed from its first piece
        on, whenever this is called; of others what comes from now on, and the last 64 KiB.

        Yields:
            Texts or JSON values as the handler emitted them; `RESTARTED` when a new
            attempt begins; a `Missed` where pieces are missing: the bounds of what is kept
            were passed, or they got lost with an orchestrator.

        Raises:
            WaitTimeoutError: nothing came for `timeout`.
        """
        return self.node.outputs.of(self._submission, self._index, timeout)


def unpickled(task_id: str) -> Task:
    """Return a handle that opens itself when it is first used."""
    return Task(None, awaiting(task_id), 0)
