"""What became of tasks, decoded: a result, the error that stands in its place, a status body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    PRUNED_STATE,
)
from d8mesh.errors import (
    D8Error,
    PrunedTaskError,
    TaskCancelledError,
    TaskFailedError,
    UnknownTaskError,
)

#: Tasks of one page of a listing.
LISTED_AT_ONCE: Final = 200
Result: TypeAlias = dict[str, Any]


def result_of(state: int, payload: bytes, submission: Submission, index: int) -> Result:
    """Return the result of a task that completed, or raise what else became of it."""
    if state == COMPLETED_STATE:
        result = decoded(payload)
        if result.get("success") is not False:  # nearly all
            return result
    elif state == FAILED_STATE:
        result = decoded(payload)
    else:
        task_id = submission.task_id(index)
        if state == CANCELLED_STATE:
            raise _about(task_id, TaskCancelledError())
        if state == PRUNED_STATE:
            raise _about(task_id, PrunedTaskError())
        raise _about(task_id, UnknownTaskError(f"the orchestrator does not know {task_id}"))
    failed = TaskFailedError(str(result.get("error") or "failed"), result=result)
    raise _about(submission.task_id(index), failed)


def is_cancelled_already(submission: Submission, index: int) -> bool | None:
    """Return whether a task that has ended, as is known here, was cancelled; None: it goes on.

    Raises:
        UnknownTaskError: the orchestrator does not know it.
    """
    if submission.refusal is not None:
        return False
    state = submission.states[index]
    if state in (COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE):
        return state == CANCELLED_STATE
    if state:
        result_of(state, b"", submission, index)
    return None


def decoded(payload: bytes) -> Result:
    """Return a recorded result; one that a worker has made wrong is told as a failure."""
    try:
        result = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        result = None
    if isinstance(result, dict):
        return result
    return {"success": False, "error": "the worker's result is no object"}


def readable(body: dict[str, Any]) -> dict[str, Any]:
    """Return a status body with its result, and its data if that is there, decoded."""
    for name in ("result", "data"):
        payload = body.get(name)
        if isinstance(payload, bytes):
            body[name] = decoded(payload)
    return body


class Listing:
    """Where one listing of tasks is: each page is asked for when those before are taken."""

    def __init__(
        self, state: str | None, kind: str | None, door: str | None, *, newest_first: bool
    ) -> None:
        #: of the next question, ``tasks``
        self.args: dict[str, object] = {"state": state or "", "type": kind or ""}
        if door:
            self.args["door"] = door
        if newest_first:
            self.args["order"] = "newest"
        self.args |= {"limit": LISTED_AT_ONCE, "cursor": ""}
        self.is_over = False

    def bodies(self, page: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Return the status bodies of a page, and go on to the next."""
        self.args["cursor"] = page["next_cursor"] or ""
        self.is_over = not self.args["cursor"]
        return map(readable, page["tasks"])


def _about(task_id: str, error: D8Error) -> D8Error:
    error.task_id = task_id
    return error
