"""Questions to the orchestrator, and the threads that wait for their answers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from d8mesh.core.client.session import ClientSession
from d8mesh.core.protocol.messages import Query
from d8mesh.edge.waits import wait_for
from d8mesh.errors import BrokerUnavailableError
from d8mesh.nodes.client.runner import ClientRunner, Slot
from d8mesh.nodes.client.submissions import check_encodable
from d8mesh.nodes.client.timeouts import bounded


class Questions:
    """Asks for the callers of one client.

    Args:
        session: what asks, on the I/O thread.
        runner: the I/O thread; it brings the answers.
        check_alive: raises when waiting has become useless.
        trouble: says why no orchestrator answers, for people; empty: one does.

    Thread: any.
    """

    def __init__(
        self,
        session: ClientSession,
        runner: ClientRunner,
        check_alive: Callable[[], None],
        trouble: Callable[[], str],
    ) -> None:
        self._session, self._runner, self._check_alive = session, runner, check_alive
        self._trouble = trouble
        self._next_request = itertools.count(1)

    def number(self) -> int:
        """Return a number that no question has had."""
        return next(self._next_request)

    def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """Ask and wait; see `Client.ask`."""
        wait_s = bounded(timeout_s)
        self._check_alive()
        request = self.number()
        question = Query(request, what, dict(args))
        check_encodable(question, what)
        ready = threading.Event()
        slot = self._runner.answers[request] = Slot(ready)
        self._runner.do(lambda now: self._session.ask(question, now))
        try:
            wait_for(ready, wait_s)
            if not slot.is_answered:
                self._check_alive()
                why = self._trouble() if wait_s else ""
                raise BrokerUnavailableError(
                    f"no orchestrator answered {what!r} within {timeout_s:g} s"
                    + (f": {why}" if why else "")
                )
        finally:
            self._runner.answers.pop(request, None)
            if not slot.is_answered:
                self._runner.do(lambda now: self._session.forget_ask(request))
        return slot.content()
