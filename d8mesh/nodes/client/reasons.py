"""Why what a caller waits for has not come: said with the error, and in the log.

A short look, bounded by `REASON_QUESTION_S`: at the reconnector and the session, and where an
orchestrator answers at what it says of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from d8mesh.core.client.session import ClientSession
from d8mesh.errors import D8Error, UnknownTaskError
from d8mesh.nodes.reconnector.reconnector import Reconnector

#: How long each question may take: an orchestrator that is well answers in milliseconds.
REASON_QUESTION_S: Final = 0.5
#: Characters of a reason: it may hold an error of a handler's.
MAX_WHY_CHARS: Final = 500


class Reason(NamedTuple):
    """Why a wait is not over; `is_running`: the task is at work, and all is well."""

    text: str
    is_running: bool = False


class Reasons:
    """Looks for the reasons of one client's waits.

    Args:
        session: the client's; it is only looked at.
        reconnector: the client's.
        ask: (what, args, seconds) -> the orchestrator's answer.
        check_alive: raises when waiting has become useless.

    Thread: any but the I/O thread.
    """

    def __init__(
        self,
        session: ClientSession,
        reconnector: Reconnector,
        ask: Callable[[str, Mapping[str, object], float], dict[str, Any]],
        check_alive: Callable[[], None],
    ) -> None:
        self._session, self._reconnector, self._ask = session, reconnector, ask
        self._check_alive = check_alive

    def trouble(self) -> str:
        """Return why no orchestrator answers; empty: one does."""
        if self._session.is_up:
            return ""
        try:
            self._check_alive()
        except D8Error as error:
            return str(error)
        return self._reconnector.trouble()

    def of(self, task_id: str) -> Reason:
        """Return why `task_id` is not further; of an empty id, why nothing is acknowledged."""
        trouble, refused = self.trouble(), self._session.paused_for
        if trouble:
            return Reason(trouble)
        if not task_id:
            if refused:
                return Reason(f"the orchestrator takes no more for now: {refused}")
            return Reason("the orchestrator answers, but has not acknowledged it yet")
        try:
            return self._of_task(self._ask("status", {"id": task_id}, REASON_QUESTION_S))
        except UnknownTaskError:
            if refused:
                return Reason(f"it is not accepted yet: {refused}")
            return Reason("it is not acknowledged yet")
        except D8Error:
            trouble = self.trouble()
            return Reason(
                trouble or f"the orchestrator did not answer within {REASON_QUESTION_S:g} s"
            )

    def _of_task(self, body: Mapping[str, Any]) -> Reason:
        state, said = str(body.get("state")), str(body.get("reason") or "")[:MAX_WHY_CHARS]
        if state == "running":
            worker = f"worker {body.get('assigned_to')!r} has it"
            return Reason(f"{worker}; {said}" if said else worker, is_running=not said)
        if state == "delayed":
            return Reason(said or "it is to be run later")
        if state == "queued":
            return Reason(f"{said or 'it is queued'} ({self._load()})")
        return Reason("it has ended just now")

    def _load(self) -> str:
        """Return how much there is to do, and who does it."""
        try:
            stats = self._ask("stats", {}, REASON_QUESTION_S)
            workers, tasks = stats["workers"], stats["tasks"]
            return (
                f"workers online: {workers['online']}, busy: {workers['busy']}; "
                f"tasks queued: {tasks['pending']}, running: {tasks['assigned']}"
            )
        except (D8Error, KeyError, TypeError):
            return "how much is queued is not known now"
