"""A client's session on an I/O thread of its own, and where its callers' threads wait for it.

`Client` and the handles of its tasks share one `ClientNode`; `aio.node.AsyncNode` is its like on an
event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from d8mesh.config import Config
from d8mesh.core.client.submission import Submission
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import Waker
from d8mesh.edge.waits import wait_for
from d8mesh.errors import D8Error, NotAcknowledgedError
from d8mesh.nodes.client import closing
from d8mesh.nodes.client.cancellations import Cancellations
from d8mesh.nodes.client.closing import (
    CLOSE_S,
    INTERRUPTED_S,
    missing_of,
    note_missing,
    raise_missing,
)
from d8mesh.nodes.client.completion_waiters import LOOK_AROUND_S, CompletionWaiters
from d8mesh.nodes.client.completions import Completions
from d8mesh.nodes.client.direct_call import DirectCalls
from d8mesh.nodes.client.questions import Questions
from d8mesh.nodes.client.reasons import Reasons
from d8mesh.nodes.client.runner import ClientRunner, new_session
from d8mesh.nodes.client.submitter import Submitter
from d8mesh.nodes.client.timeouts import countdown
from d8mesh.nodes.credentials import client_keys, credentials_of, web_access
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search

#: How long the I/O thread may take to say goodbye.
CLIENT_GOODBYE_S: Final = 3.0
#: Closing takes so long beyond its time-out: who closes a client that is being closed waits for it.
BEYOND_CLOSE_S: Final = 8.0


class ClientNode:
    """One session with one mesh, for any number of threads.

    Args:
        config: settings.
        endpoint: ``tcp://HOST:PORT`` of a broker, if that is known.
        url: ``http://HOST:PORT`` of an orchestrator, if that is known.

    Thread: any.
    """

    def __init__(
        self, config: Config, *, endpoint: str | None = None, url: str | None = None
    ) -> None:
        keys, access = client_keys(config), web_access(config)
        make_session = partial(new_session, config.mesh, credentials_of(config, keys))
        given = endpoint or url or config.orchestrator_url

        def make_reconnector(wake: Callable[[], None]) -> Reconnector:
            return Reconnector(
                Search(config, given=given), Connector(wake, keys=keys, access=access)
            )

        waker, check_alive = Waker(), self.check_alive
        self.session = make_session()
        self.reconnector = make_reconnector(waker.wake)
        self.reasons = Reasons(
            self.session,
            self.reconnector,
            ask=lambda what, args, timeout_s: self.questions.ask(what, args, timeout_s),
            check_alive=check_alive,
        )
        self.waiters = CompletionWaiters(check_alive, self.reasons.of)
        self.waiters.check_may_wait = self.check_may_wait
        self.completions = Completions()
        self.runner = ClientRunner(
            self.session, self.waiters, waker, self.reconnector, completions=self.completions
        )
        self.waiters.check_alive = self.runner.check_alive  # each submit asks: without a detour
        self.submitter = Submitter(self.runner)
        self.questions = Questions(self.runner)
        self.direct_calls = DirectCalls(
            make_session=make_session,
            make_reconnector=make_reconnector,
            keys=keys,
            check_alive=check_alive,
            why=self.reasons.of,
        )
        self._cancellations = Cancellations(self.runner, self.questions)
        self._closing, self._closed = threading.Lock(), threading.Event()
        self.runner.start()
        closing.close_at_exit(self)

    # ------------------------------------------------------------ whether waiting makes sense

    def check_alive(self) -> None:
        """Make sure that something can still come; see `ClientRunner.check_alive`."""
        self.runner.check_alive()

    @property
    def is_over(self) -> bool:
        """True when nothing comes any more: the client is closed or has died, or is a fork's."""
        try:
            self.check_alive()
        except D8Error:
            return True
        return False

    def check_may_wait(self) -> None:
        """Raise a `D8Error` if waiting would be in vain, or for ever."""
        self.check_alive()
        self.check_is_elsewhere()

    def check_is_elsewhere(self) -> None:
        """Raise a `D8Error` in a callback, whose thread brings all that it could wait for."""
        if self.runner.is_caller:
            raise D8Error(
                "this is called by the client's own thread (a callback): to wait here for "
                "something of the same client would be for ever"
            )

    # ------------------------------------------------------------------- asking, waiting

    def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """Ask the orchestrator something; see `Client.ask`."""
        self.check_may_wait()
        return self.questions.ask(what, args, timeout_s, self.reasons.trouble)

    def wait_connected(self, timeout_s: float | None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        left_s, connected = countdown(timeout_s), self.runner.connected
        while not connected.is_set():
            self.check_may_wait()
            left = left_s()
            if left is not None and left <= 0:
                return False
            wait_for(connected, LOOK_AROUND_S if left is None else min(LOOK_AROUND_S, left))
        return True

    def watch(self, submission: Submission) -> None:
        """Have the outcome of another's task arrive in `submission`."""
        self.runner.do(lambda now: self.session.watch(submission))

    def drop(self, submission: Submission, index: int) -> None:
        """Cancel a task that nobody wants any more; return at once."""
        if not submission.is_known(index) and not self.is_over:
            self._cancellations.add(submission, index)

    def wait_dropped(self, timeout_s: float | None) -> bool:
        """Wait until the orchestrator has heard of all that was dropped; False: not in time."""
        return self._cancellations.wait(timeout_s)

    # --------------------------------------------------------------------------- the end

    def close(self, timeout_s: float | None = CLOSE_S) -> None:
        """Take nothing more, wait until all is acknowledged, say goodbye, and stop; once.

        Who calls while another thread is at it waits for that, and is told the same. In a forked
        child it does nothing: what was submitted is the parent's.

        Raises:
            NotAcknowledgedError: see `Client.close`.
        """
        if self.runner.is_forked or self._closed.is_set():
            return
        timeout_s, why = 0.0 if self.runner.is_caller else timeout_s, ""
        if not self._closing.acquire(blocking=False):  # it is never released
            wait_for(self._closed, None if timeout_s is None else timeout_s + BEYOND_CLOSE_S)
            raise_missing(self.waiters, "")
            return
        self.waiters.shut()
        try:
            left_s = countdown(timeout_s)
            if not self.waiters.wait_empty(timeout_s):
                why = self.reasons.of("").text
            elif self.session.is_up:  # what was dropped is cancelled by then, too
                self.wait_dropped(left_s())
        except BaseException as error:  # Ctrl-C: it stays what is raised
            note_missing(error, missing_of(self.waiters, "the wait was interrupted"))
            raise
        finally:
            try:
                self._end()
            finally:
                self._closed.set()
        raise_missing(self.waiters, why)

    def close_beside(self, error: BaseException) -> None:
        """Close while `error` is under way: what is missing becomes a note of it."""
        try:
            self.close(INTERRUPTED_S if isinstance(error, KeyboardInterrupt) else CLOSE_S)
        except NotAcknowledgedError as missing:
            note_missing(error, missing)

    def _end(self) -> None:
        """Let all go, without waiting for what is missing."""
        closing.forget(self)
        self.runner.is_closed = True
        self.direct_calls.close()
        self.runner.close(CLIENT_GOODBYE_S)
        self.reconnector.close()
        self.waiters.close()
