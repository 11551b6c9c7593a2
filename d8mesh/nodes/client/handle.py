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
from d8mesh.nodes.client.outputs import output_of
from d8mesh.nodes.client.results import Result, is_cancelled_already, readable, result_of
from d8mesh.nodes.client.timeouts import DEFAULT_QUESTION_S, bounded, countdown, takes_timeout_s

#: How long `Task.cancel` waits for the outcome beyond the answer: they come together.
OUTCOME_S: Final = 2.0


class NodeOwner(Protocol):
    """What a `Client` is to the handles of its tasks."""

    @property
    def node(self) -> ClientNode:
        """Its session, where they wait."""


class TaskHandle:
    """What every handle of a task knows without waiting."""

    __slots__ = ("index", "submission")
    submission: Submission  #: what it travelled in
    index: int  #: which of its submission's tasks it is

    @property
    def id(self) -> str:
        """The task's id, final from the start; it opens the task in any other process."""
        return self.submission.task_id(self.index)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the orchestrator says of the submit: that no worker offers the type, say.

        Empty before the acknowledgement.
        """
        return self.submission.warnings

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def is_known(self) -> bool:
        """Return whether the outcome has arrived here, or will not because it was refused."""
        return self.submission.is_known(self.index)

    def cancelled(self) -> bool:
        """Return whether it is known here that the task was cancelled."""
        return self.submission.states[self.index] == CANCELLED_STATE

    def outcome(self) -> Result:
        """Return, or raise, what is known to have come of the task; see `Task.result`."""
        submission, index = self.submission, self.index
        if submission.refusal is not None:
            with self._named():
                submission.raise_refusal()
        payload = submission.payloads[index] or b""
        return result_of(submission.states[index], payload, submission, index)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error out of this names the task."""
        try:
            yield
        except D8Error as error:
            error.task_id = self.id
            raise


class Task(TaskHandle):
    """A handle of one task, used as a `concurrent.futures.Future` is.

    It pickles as its id: unpickled, it opens itself through a client of its process's own when
    it is first used (`Client()`: the settings of the environment); `Client.task` opens it through
    another. A copy of a handle is the handle itself.

    Thread: every method may be called from any thread.
    """

    __slots__ = ("_client",)

    #: returns the client that the unpickled handles of this process share; `client` sets it
    own_client: ClassVar[Callable[[], NodeOwner]]

    def __init__(self, client: NodeOwner | None, submission: Submission, index: int) -> None:
        self._client = client
        self.submission = submission
        self.index = index

    @property
    def client(self) -> NodeOwner:
        """The `Client` that it waits with; of an unpickled one that of this process."""
        if self._client is None:
            self._client = Task.own_client()
            self._client.node.watch(self.submission)
        return self._client

    @property
    def node(self) -> ClientNode:
        """Its client's."""
        return self.client.node

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
        return self.is_known() or self.node.is_over

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
        if not self.submission.states[self.index]:
            self._await(timeout)
        return self.outcome()

    def take(self, timeout_s: float | None) -> Result:
        """Return `result`, and forget it: for handles that nobody else has."""
        if not self.submission.states[self.index]:
            self._await(timeout_s)
        result = self.outcome()
        self.submission.payloads[self.index] = None
        return result

    def _await(self, timeout_s: float | None) -> None:
        with self._named():
            self._wait(timeout_s, f"the result of {self.id}", self.id)

    def _wait(self, timeout_s: float | None, what: str, task_id: str | None = None) -> None:
        """Wait until the outcome is known."""
        waiters = self.node.waiters
        waiters.wait_for(self.submission, self.is_known, timeout_s, what=what, task_id=task_id)

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
        self.node.completions.add(self.submission, self.index, call, self.done)

    @takes_timeout_s
    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until the task is acknowledged: safely on the orchestrator's disk.

        Raises:
            TaskRejectedError: the submit was refused.
            WaitTimeoutError: `timeout` is over.
        """
        with self._named():
            self.node.waiters.wait_settled(self.submission, timeout)

    def _ask(self, what: str, timeout_s: float, **more: object) -> dict[str, Any]:
        with self._named():
            return self.node.ask(what, {"id": self.id, **more}, timeout_s)

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
        if (is_cancelled := is_cancelled_already(self.submission, self.index)) is not None:
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
        return output_of(self.node.runner, self.submission, self.index, timeout)


def unpickled(task_id: str) -> Task:
    """Return a handle that opens itself when it is first used."""
    return Task(None, awaiting(task_id), 0)
