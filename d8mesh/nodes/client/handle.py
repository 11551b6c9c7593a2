"""A task as its submitter sees it: a handle that waits, streams, cancels."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    PRUNED_STATE,
    Stream,
)
from d8mesh.errors import (
    D8Error,
    PrunedTaskError,
    TaskCancelledError,
    TaskFailedError,
    TaskRejectedError,
    UnknownTaskError,
    WaitTimeoutError,
)
from d8mesh.nodes.client.submissions import awaiting
from d8mesh.nodes.client.timeouts import bounded, countdown, takes_timeout_s

if TYPE_CHECKING:
    from d8mesh.nodes.client.node import Client

#: Tasks of one page of a listing.
LISTED_AT_ONCE: Final = 200
#: A question's time when the caller names none.
ASK_S: Final = 30.0
#: How long `Task.cancel` waits for the outcome beyond the answer: they come together.
OUTCOME_S: Final = 2.0
Result: TypeAlias = dict[str, Any]


class Restarted:
    """In `Task.stream`: a new attempt began; forget what came before."""

    def __repr__(self) -> str:
        return "RESTARTED"


RESTARTED: Final = Restarted()


class Task:
    """A handle of one task, used as a `concurrent.futures.Future` is.

    It pickles as its id: unpickled, it opens itself through a client of its process's own when
    it is first used (`Client()`: the settings of the environment); `Client.task` opens it through
    another. A copy of a handle is the handle itself.

    Thread: every method may be called from any thread.
    """

    __slots__ = ("_client", "_index", "_submission")

    def __init__(self, client: Client | None, submission: Submission, index: int) -> None:
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
    def client(self) -> Client:
        """The client that it waits with; of an unpickled one that of this process."""
        if self._client is None:
            self._client = opened(self._submission)
        return self._client

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
        return self._is_known() or self.client.hub.is_over

    def _is_known(self) -> bool:
        return bool(self._submission.states[self._index]) or self._submission.refusal is not None

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
                what = f"the result of {self.id}"
                self.client.hub.wait_for(
                    submission, self._is_known, timeout_s, what=what, task_id=self.id
                )
            if submission.refusal is not None:
                submission.raise_refusal()
        except D8Error as error:
            error.task_id = self.id
            raise
        payload = submission.payloads[index] or b""
        if submission.states[index] == COMPLETED_STATE:
            result = _decoded(payload)
            if result.get("success") is not False:  # nearly all
                return result
        return result_of(submission.states[index], payload, self.id)

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
        self.client.hub.when_done(self._submission, self._index, partial(fn, self), self.done)

    @takes_timeout_s
    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until the task is acknowledged: safely on the orchestrator's disk.

        Raises:
            TaskRejectedError: the submit was refused.
            WaitTimeoutError: `timeout` is over.
        """
        self._settle(timeout)

    def _settle(self, timeout_s: float | None) -> None:
        try:
            self.client.hub.wait_settled(self._submission, timeout_s)
        except D8Error as error:
            error.task_id = self.id
            raise

    def _ask(self, what: str, timeout_s: float, **more: object) -> dict[str, Any]:
        try:
            return self.client.ask(what, {"id": self.id, **more}, timeout=timeout_s)
        except D8Error as error:
            error.task_id = self.id
            raise

    @takes_timeout_s
    def status(self, timeout: float | None = ASK_S, *, full: bool = False) -> dict[str, Any]:
        """Return the documented status body, as ``GET /api/tasks/status/{id}`` does.

        Args:
            full: with ``data``, the task's input, and ``history``, all that went wrong so far.

        Raises:
            TaskRejectedError: the submit was refused.
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
        """
        timeout = ASK_S if timeout is None else timeout
        self._settle(timeout)  # before, nobody knows the task
        return readable(self._ask("status", timeout, **({"full": True} if full else {})))

    @takes_timeout_s
    def cancel(self, timeout: float | None = ASK_S) -> bool:
        """Cancel the task, also a running one; return whether it is cancelled now.

        False: it had ended otherwise before. A running handler is told (`TaskContext`), and what
        it still returns is dropped.

        Raises:
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
            NodeClosedError: the client is closed.
        """
        timeout = ASK_S if timeout is None else timeout
        left_s = countdown(timeout)
        if self._submission.refusal is not None:
            return False
        state = self._submission.states[self._index]
        if state in (COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE):
            return state == CANCELLED_STATE
        if state:
            result_of(state, b"", self.id)
        try:
            self._settle(left_s())
        except TaskRejectedError:
            return False
        answer = self._ask("cancel", timeout)
        if answer["state"] == "cancelled":
            # Its outcome is on the way: `cancelled` is to be true when this returns.
            left = left_s()
            wait_s = OUTCOME_S if left is None else min(left, OUTCOME_S)
            with contextlib.suppress(WaitTimeoutError):
                what = f"the outcome of {self.id}"
                self.client.hub.wait_for(self._submission, self._is_known, wait_s, what=what)
            return True
        return False

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
        return self.client.outputs.of(self, timeout)


class StreamDeduplicator:
    """Passes a task's partial output on, once: reconnects and late starts bring some again.

    Args:
        on_event: called with each `Stream`, and with None once the task is finished.
    """

    def __init__(self, on_event: Callable[[Stream | None], None]) -> None:
        self._on_event = on_event
        self._attempt = self._next_seq = 0

    def __call__(self, stream: Stream | None) -> None:
        """Take in what was heard."""
        if stream is None:
            self._on_event(None)
            return
        if stream.attempt != self._attempt:
            self._attempt, self._next_seq = stream.attempt, 0
        elif not stream.payloads:
            return  # that this attempt began is known
        known = self._next_seq - stream.first_seq
        if known > 0:
            if known >= len(stream.payloads):
                return
            first_seq = self._next_seq
            stream = Stream(stream.id, stream.attempt, first_seq, stream.payloads[known:])
        self._next_seq = stream.first_seq + len(stream.payloads)
        self._on_event(stream)


def listed(
    ask: Callable[[dict[str, object]], dict[str, Any]], wanted: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    """Yield the status bodies of a listing, page by page as they are taken."""
    cursor = ""
    while True:
        page = ask({**wanted, "limit": LISTED_AT_ONCE, "cursor": cursor})
        yield from map(readable, page["tasks"])
        cursor = page["next_cursor"] or ""
        if not cursor:
            return


def readable(body: dict[str, Any]) -> dict[str, Any]:
    """Return a status body with its result, and its data if that is there, decoded."""
    for name in ("result", "data"):
        payload = body.get(name)
        if isinstance(payload, bytes):
            body[name] = _decoded(payload)
    return body


def _decoded(payload: bytes) -> Result:
    """Return a recorded result; one that a worker has made wrong is told as a failure."""
    try:
        result = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        result = None
    if isinstance(result, dict):
        return result
    return {"success": False, "error": "the worker's result is no object"}


def result_of(state: int, payload: bytes, task_id: str) -> Result:
    """Return the result of a completed task, or raise what else became of it."""
    if state == COMPLETED_STATE:
        result = _decoded(payload)
        if result.get("success") is not False:
            return result
        raise _about(task_id, _failed(result))
    if state == FAILED_STATE:
        raise _about(task_id, _failed(_decoded(payload)))
    if state == CANCELLED_STATE:
        raise _about(task_id, TaskCancelledError())
    if state == PRUNED_STATE:
        raise _about(task_id, PrunedTaskError())
    raise _about(task_id, UnknownTaskError(f"the orchestrator does not know {task_id}"))


def _failed(result: Result) -> TaskFailedError:
    return TaskFailedError(str(result.get("error") or "failed"), result=result)


def _about(task_id: str, error: D8Error) -> D8Error:
    error.task_id = task_id
    return error


# ---------------------------------------------------------------------- unpickled ones


def unpickled(task_id: str) -> Task:
    """Return a handle that opens itself when it is first used."""
    return Task(None, awaiting(task_id), 0)


_lock: Final = threading.Lock()
_own: Client | None = None


def opened(submission: Submission) -> Client:
    """Have this process's own client watch a task of an unpickled handle; return it."""
    from d8mesh.nodes.client.node import Client  # it makes handles, so it is above

    global _own
    with _lock:
        if _own is None or _own.hub.is_over:  # closed by somebody, or this is a child of a fork
            _own = Client()
        client = _own
    client.hub.watch(submission)
    return client
