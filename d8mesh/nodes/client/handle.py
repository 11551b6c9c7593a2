"""A task as its submitter sees it: a handle that waits, streams, cancels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from d8mesh.core.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    PRUNED_STATE,
    Stream,
)
from d8mesh.core.parcel import Parcel
from d8mesh.errors import (
    PrunedTaskError,
    TaskCancelledError,
    TaskFailedError,
    UnknownTaskError,
    WaitTimeoutError,
)
from d8mesh.nodes.client.patience import takes_timeout_s, told_whole

if TYPE_CHECKING:
    from d8mesh.nodes.client.node import Client

#: Tasks of one page of a listing.
LISTED_AT_ONCE: Final = 200
#: A question's time when the caller names none.
ASK_S: Final = 30.0
Result: TypeAlias = dict[str, Any]


class Restarted:
    """In `Task.stream`: a new attempt began; forget what came before."""

    def __repr__(self) -> str:
        return "RESTARTED"


RESTARTED: Final = Restarted()


class Task:
    """A handle of one task."""

    __slots__ = ("_client", "_index", "_parcel")

    def __init__(self, client: Client, parcel: Parcel, index: int) -> None:
        self._client = client
        self._parcel = parcel
        self._index = index

    @property
    def id(self) -> str:
        """The task's id, final from the start; it opens the task in any other process."""
        return self._parcel.task_id(self._index)

    @property
    def parcel(self) -> Parcel:
        """What it travelled in."""
        return self._parcel

    def __repr__(self) -> str:
        return f"<Task {self.id}>"

    def done(self) -> bool:
        """Return whether the outcome has arrived here."""
        return bool(self._parcel.states[self._index]) or self._parcel.refusal is not None

    @takes_timeout_s
    def result(self, timeout: float | None = None) -> Result:
        """Wait for the recorded result and return it: an object with ``success`` true.

        Raises:
            TaskFailedError: the task failed; the error carries its ``result``.
            TaskCancelledError: the task was cancelled.
            TaskRejectedError: the submit was refused; nothing was accepted.
            UnknownTaskError: the orchestrator does not know the task.
            WaitTimeoutError: `timeout` is over; the task goes on.
        """
        parcel, index = self._parcel, self._index
        if not parcel.states[index]:
            what = f"the result of {self.id}"
            self._client.board.wait_for(parcel, self.done, timeout, what=what, task_id=self.id)
        parcel.raise_refusal()
        return result_of(parcel.states[index], parcel.payloads[index] or b"", self.id)

    @takes_timeout_s
    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until the task is acknowledged: safely on the orchestrator's disk.

        Raises:
            TaskRejectedError: the submit was refused.
            WaitTimeoutError: `timeout` is over.
        """
        self._client.board.wait_settled(self._parcel, timeout)

    @takes_timeout_s
    def status(self, timeout: float = ASK_S) -> dict[str, Any]:
        """Return the documented status body, as ``GET /api/tasks/status/{id}`` does.

        Raises:
            TaskRejectedError: the submit was refused.
            UnknownTaskError: the orchestrator does not know the task.
            BrokerUnavailableError, WaitTimeoutError: no answer within `timeout`.
        """
        self.wait_accepted(timeout)  # before, nobody knows the task
        return readable(self._client.ask("status", {"id": self.id}, timeout=timeout))

    @takes_timeout_s
    def cancel(self, timeout: float = ASK_S) -> str:
        """Cancel the task and return its state: ``cancelled``, or how it had ended before.

        Raises:
            As of `status`.
        """
        self.wait_accepted(timeout)
        return str(self._client.ask("cancel", {"id": self.id}, timeout=timeout)["state"])

    @takes_timeout_s
    def stream(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield partial output as it comes, until the task is finished.

        Yields:
            Texts or JSON values as the handler emitted them; `RESTARTED` when a new
            attempt begins.

        Raises:
            WaitTimeoutError: nothing came for `timeout`.
        """
        return self._client.stream_of(self, timeout)


class Ear:
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


def results_of(
    tasks: list[Task], left_s: Callable[[], float | None], timeout_s: float | None
) -> Iterator[Result]:
    """Yield the results of `tasks`, the last first; `left_s` tells what is left of the wait."""
    while tasks:
        try:
            result = tasks.pop().result(left_s())  # what was delivered is forgotten here
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None
        yield result


def readable(body: dict[str, Any]) -> dict[str, Any]:
    """Return a status body with its result decoded."""
    payload = body.get("result")
    if isinstance(payload, bytes):
        body["result"] = _decoded(payload)
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
    if state == PRUNED_STATE:
        raise PrunedTaskError
    if state not in (COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE):
        raise UnknownTaskError(f"the orchestrator does not know {task_id}")
    result = _decoded(payload)
    if state == CANCELLED_STATE:
        raise TaskCancelledError
    if state == FAILED_STATE or result.get("success") is False:
        raise TaskFailedError(str(result.get("error") or "failed"), result=result)
    return result
