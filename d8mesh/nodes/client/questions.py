"""Questions to the orchestrator, and the threads that wait for their answers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from d8mesh.core.client.effects import Answered
from d8mesh.core.protocol.messages import ChangeMembers, ClientQuestion, MemberChange, Query
from d8mesh.edge.waits import wait_for
from d8mesh.errors import BrokerUnavailableError, error_of
from d8mesh.nodes.client.groups import check_encodable
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.timeouts import bounded

#: What changes members.
_CHANGES: Final[dict[str, MemberChange]] = {
    "members.approve": "approve",
    "members.revoke": "revoke",
    "members.forget": "forget",
}


class PendingAnswer:
    """A question that was asked, and its answer once that is there.

    Args:
        request: the question's number.
        on_ready: called when there is an answer, or will be none.
    """

    __slots__ = ("_on_ready", "answered", "request")

    def __init__(self, request: int, on_ready: Callable[[], object]) -> None:
        self.request, self._on_ready = request, on_ready
        self.answered: Answered | None = None

    def arrived(self, answered: Answered | None) -> None:
        """Take in the answer; None: there will be none."""
        self.answered = answered
        self._on_ready()

    def content(self) -> dict[str, Any] | None:
        """Return what was answered, or raise it; None: nothing was."""
        answered = self.answered
        if answered is None or not answered.code:
            return None if answered is None else answered.body
        error = error_of(answered.code, str(answered.body.get("error") or answered.code))
        error.details = answered.body
        raise error


class Questions:
    """Asks for the callers of one client.

    Thread: any.
    """

    def __init__(self, runner: ClientRunner) -> None:
        self._session, self._runner = runner.session, runner
        self._next_request = itertools.count(1)

    def number(self) -> int:
        """Return a number that no question has had."""
        return next(self._next_request)

    def begin(
        self, what: str, args: Mapping[str, object], on_ready: Callable[[], object]
    ) -> PendingAnswer:
        """Ask; `end` has to follow, whatever becomes of it.

        Args:
            on_ready: called by the I/O thread when there is an answer, or will be none.

        Raises:
            InvalidTaskError: this cannot be sent.
            NodeClosedError: the client is closed.
        """
        self._runner.check_alive()
        pending = PendingAnswer(self.number(), on_ready)
        question = _question(pending.request, what, args)
        check_encodable(question, what)
        self._runner.on_answer[pending.request] = pending.arrived
        self._runner.do(lambda now: self._session.ask(question, now))
        return pending

    def end(self, pending: PendingAnswer) -> None:
        """Nobody waits for the answer any more."""
        self._runner.on_answer.pop(pending.request, None)
        if pending.answered is None:
            self._runner.do(lambda now: self._session.forget_ask(pending.request))

    def ask(
        self,
        what: str,
        args: Mapping[str, object],
        timeout_s: float,
        trouble: Callable[[], str] = lambda: "",
    ) -> dict[str, Any]:
        """Ask and wait; see `Client.ask`.

        Args:
            trouble: says why no orchestrator answers, for people; empty: one does.
        """
        wait_s = bounded(timeout_s)
        ready = threading.Event()
        pending = self.begin(what, args, ready.set)
        try:
            wait_for(ready, wait_s)
        finally:
            self.end(pending)
        content = pending.content()
        if content is None:
            self._runner.check_alive()
            raise unanswered(what, timeout_s, trouble() if wait_s else "")
        return content


def _question(request: int, what: str, args: Mapping[str, object]) -> ClientQuestion:
    """Return the message that asks; changes of members are one of their own."""
    change = _CHANGES.get(what)
    if change is None:
        return Query(request, what, dict(args))
    return ChangeMembers(request, change, str(args.get("who", "")))


def unanswered(what: str, timeout_s: float, why: str) -> BrokerUnavailableError:
    """Return the error of a question that nobody answered; `why` may be empty."""
    text = f"no orchestrator answered {what!r} within {timeout_s:g} s"
    return BrokerUnavailableError(f"{text}: {why}" if why else text)
