"""A session that runs on its caller's own thread: one task at a time, and nobody to be woken.

What a `Client` does on a thread of its own costs two wake-ups of threads for each task, which is
most of the way of a task with one in flight. A direct call has a connection and a `ClientSession`
of its own instead. While all goes well it needs nobody; when its connection is lost, the same
session goes on in a `ClientRunner`, which knows how to find the orchestrator again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from d8mesh.core.client.effects import Connected, Lost, Output, Rejected, Transmit
from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission, TaskOutcome
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.core.protocol.messages import Goodbye, Group, Outcomes
from d8mesh.core.protocol.route import Route
from d8mesh.edge.logs import event
from d8mesh.edge.network import first_reachable
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import SharedContext, Waker
from d8mesh.errors import BrokerUnavailableError, ProtocolError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.completion_waiters import LOOKS_S, QUIET_S, CompletionWaiters, log_waiting
from d8mesh.nodes.client.reasons import Reason
from d8mesh.nodes.client.results import Result, result_of
from d8mesh.nodes.client.runner import DOUBT_PAUSE_S, ClientRunner
from d8mesh.nodes.client.timeouts import countdown, give_up, timed_out, told_whole
from d8mesh.nodes.reconnector.reconnector import ACCEPT_S, CUT_S, Reconnector

#: As long as no more threads than this call, each has a direct call; the batches of the shared
#: session are quicker from six threads on.
MAX_DIRECT_CALLS: Final = 4
#: The clocks, the connection and the client are looked at this often while a call waits.
CLOCKS_LOOK_S: Final = 0.25
#: After a pause of this long the orchestrator is greeted again: it may have forgotten us.
GREET_AGAIN_S: Final = 3.0
#: One that was not used for so long is let go at the next opportunity.
UNUSED_S: Final = 30.0
#: Frames taken at once from a connection that was idle.
STALE_FRAMES: Final = 1000
#: How long the thread that went on for a lost direct call may take to end.
STAND_IN_END_S: Final = 3.0
_log: Final = logging.getLogger("d8mesh.client")


class DirectCallLostError(Exception):
    """The connection is of no use any more; the session can go on elsewhere."""


class DirectCall:
    """One connection, and the session on it.

    Args:
        route: to the broker, by ZeroMQ.
        session: the brain, of nobody else.
        connector: makes the connection.
        why: says why a task is not further; takes a short time.

    Raises:
        BrokerUnavailableError: there is no connecting along `route`.

    Thread: one at a time.
    """

    def __init__(
        self,
        route: Route,
        session: ClientSession,
        connector: Connector,
        why: Callable[[str], Reason] = lambda task_id: Reason(""),
    ) -> None:
        self.route, self.session, self._why = route, session, why
        self.broker_id = ""
        #: when an outcome came last, and since when nobody has used it (monotonic seconds)
        self.used, self.idle_since = -math.inf, 0.0
        self._link = connector.connect(route)
        self._next_n = 0
        self._cut_since = self._next_doubt = 0.0
        #: ids and states that the session is told of during the next call; they came at `used`
        self._untold: tuple[list[str], bytes] | None = None

    def submission(self, group: Group) -> Submission:
        """Return a submission with the next task."""
        n, self._next_n = self._next_n, self._next_n + 1
        return Submission(self.session.name, n, [group])

    def call(
        self, submission: Submission, timeout_s: float | None, check_alive: Callable[[], None]
    ) -> TaskOutcome:
        """Submit a submission and wait for its outcome.

        Args:
            submission: of one task, from `submission`.
            timeout_s: how long to wait; None: as long as it takes.
            check_alive: raises when waiting has become useless; called now and then.

        Raises:
            DirectCallLostError: the connection was lost; the session has the submission.
            TaskRejectedError: it was refused.
            WaitTimeoutError: `timeout_s` is over; nobody waits for the task any more.
        """
        session, link = self.session, self._link
        begun = now = time.monotonic()
        is_said = False
        until = math.inf if timeout_s is None else now + timeout_s
        next_look = now + CLOCKS_LOOK_S
        if now - self.used > GREET_AGAIN_S:
            session.link_down()
            self._carry_out(session.submit(submission, now))  # it waits for the greeting's answer
            self._greet(now)
        else:
            self._carry_out(session.submit(submission, now))
            self._tell()
        task_id = submission.task_id(0)
        while True:
            frame = link.await_frame(max(0.0, min(next_look, until) - now))
            now = time.monotonic()
            outcome = None if frame is None else self._receive(frame, submission, task_id, now)
            if outcome is not None:
                self.used = now
                return outcome
            if now >= next_look:
                next_look = now + CLOCKS_LOOK_S
                check_alive()
                self._look(now)
                if now - begun > QUIET_S and not is_said:
                    is_said = True
                    log_waiting(_what(task_id), self._why(task_id))
            submission.raise_refusal()
            if now >= until:
                session.abandon(submission)
                is_look = timeout_s is None or timeout_s < LOOKS_S
                why = "" if is_look else self._why(task_id).text
                raise timed_out(_what(task_id), timeout_s, why)

    def close(self, *, is_lost: bool = False) -> None:
        """Say goodbye, unless the session goes on elsewhere, and let the connection go."""
        if not is_lost:
            self._link.send(encode(Goodbye("closed")))
        self._tell()
        self.session.link_down()
        self._link.close()

    def _greet(self, now: float) -> None:
        """Say HELLO: for the first time, or after a pause in which nobody listened here."""
        self._tell()
        self._link.look()
        self._link.is_renewed, self._cut_since = False, 0.0
        while self._link.receive(STALE_FRAMES):
            pass  # nobody waits for it: all that counts is asked for anew
        self._carry_out(self.session.link_up(now, self._link.server_key))

    def _look(self, now: float) -> None:
        """Notice a broken connection, and do what is due."""
        link = self._link
        link.look()
        if link.is_renewed:
            link.is_renewed, self._cut_since = False, 0.0
            self._carry_out(self.session.link_up(now, link.server_key))
        elif link.is_cut:
            self._cut_since = self._cut_since or now
            if now - self._cut_since >= CUT_S:
                raise DirectCallLostError(f"the connection has been cut for {CUT_S:g} s")
        if now >= max(self.session.doubt_at, self._next_doubt):
            self._next_doubt = now + DOUBT_PAUSE_S
            if first_reachable([self.route.address], deadline_s=ACCEPT_S) is None:
                raise DirectCallLostError("the orchestrator does not answer")
        self._carry_out(self.session.tick(now))

    def _receive(
        self, frame: bytes, submission: Submission, task_id: str, now: float
    ) -> TaskOutcome | None:
        """Take in a frame; return the outcome of the task that is awaited, if it is there."""
        try:
            message = decode_to_client(frame)
            if type(message) is Outcomes and message.ids == [task_id] and message.states[0]:
                self._untold = message.ids, message.states
                return TaskOutcome(message.states[0], message.payloads[0])
            self._carry_out(self.session.receive(message, now))
        except ProtocolError as error:
            event(_log, logging.WARNING, "frame.bad", error=str(error))
        return submission.outcome(0) if submission.states[0] else None

    def _tell(self) -> None:
        """Tell the session of the last outcome: nobody waits for that any more."""
        if self._untold is not None:
            (ids, states), self._untold = self._untold, None
            self._carry_out(self.session.receive(Outcomes(ids, states, [b""]), self.used))

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Transmit():
                    self._link.send(encode(output.message))
                case Connected():
                    self.broker_id = output.broker_id
                case Lost():
                    raise DirectCallLostError(output.why)
                case Rejected():
                    raise DirectCallLostError(output.message)


class DirectCalls:
    """The direct calls of one client, made when they are needed and kept for the next call.

    Args:
        make_session: returns a new session.
        make_reconnector: returns what finds the orchestrator again, given what it is to wake.
        keys: the client's.
        check_alive: raises when waiting has become useless.
        why: says why a task is not further; takes a short time.

    Thread: any.
    """

    def __init__(
        self,
        *,
        make_session: Callable[[], ClientSession],
        make_reconnector: Callable[[Callable[[], None]], Reconnector],
        keys: KeyPair,
        check_alive: Callable[[], None],
        why: Callable[[str], Reason] = lambda task_id: Reason(""),
    ) -> None:
        self._make_session, self._make_reconnector = make_session, make_reconnector
        self._keys = keys
        self._check_alive, self._why = check_alive, why
        self._lock = threading.Lock()
        self._idle: deque[DirectCall] = deque()  #: the one that was used last at the right
        self._count = 0  #: idle and in use
        self._callers = 0
        self._is_closed = False
        self._shared: SharedContext | None = None

    @contextlib.contextmanager
    def caller(self) -> Iterator[bool]:
        """Count one who calls; gives whether they are few enough for direct calls of their own."""
        with self._lock:
            self._callers += 1
            is_few = self._callers <= MAX_DIRECT_CALLS
        try:
            yield is_few
        finally:
            with self._lock:
                self._callers -= 1

    def call(self, route: Route, group: Group, timeout_s: float | None) -> Result | None:
        """Submit one task and wait for its result.

        Args:
            route: to the broker, by ZeroMQ.
            group: of one task.
            timeout_s: how long to wait; None: as long as it takes.

        Returns:
            The result; None: no direct call can be made; nothing was submitted.

        Raises:
            TaskRejectedError: it was refused.
            WaitTimeoutError: `timeout_s` is over.
            What else `result_of` raises.
        """
        left_s = countdown(timeout_s)
        direct_call = self._take(route)
        if direct_call is None:
            return None
        is_kept = is_lost = False
        outcome: TaskOutcome | None = None
        submission = direct_call.submission(group)
        submission.give_up = give_up(timeout_s)
        try:
            outcome = direct_call.call(submission, timeout_s, self._check_alive)
            is_kept = True
        except (TaskRejectedError, WaitTimeoutError) as error:
            is_kept = True
            error.task_id = submission.task_id(0)
            raise
        except DirectCallLostError as error:
            event(_log, logging.INFO, "direct_call.lost", why=str(error))
            is_lost = True
        finally:  # also on Ctrl-C: what the session was at is unknown then
            if is_kept:
                self._give_back(direct_call)
            else:
                self._let_go([direct_call], is_lost=is_lost)
        if outcome is None:
            try:
                outcome = self._go_on(direct_call, submission, left_s())
            except WaitTimeoutError as error:
                raise told_whole(error, timeout_s) from None
        return result_of(outcome.state, outcome.payload, submission, 0)

    def close(self) -> None:
        """Close those that are idle; the others follow when their calls end."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, deque()
        self._let_go(list(idle))

    def _take(self, route: Route) -> DirectCall | None:
        """Return one along `route` for the caller alone; None: there can be none."""
        with self._lock:
            direct_call = self._idle.pop() if self._idle else None
            if direct_call is not None and direct_call.route == route:
                return direct_call
            if direct_call is None and self._is_closed:
                return None
            self._count += 1
            shared = self._shared = self._shared or SharedContext()
        try:
            if direct_call is not None:  # the client is elsewhere by now
                self._let_go([direct_call])
            connector = Connector(shared=shared, keys=self._keys)
            return DirectCall(route, self._make_session(), connector, self._why)
        except BaseException as error:  # also Ctrl-C
            self._free(1)
            if isinstance(error, BrokerUnavailableError):
                return None
            raise

    def _give_back(self, direct_call: DirectCall) -> None:
        """Keep one for the next call, and let go of those that nobody has needed for long."""
        now = direct_call.idle_since = time.monotonic()
        useless: list[DirectCall] = []
        with self._lock:
            if self._is_closed:
                useless.append(direct_call)
            else:
                self._idle.append(direct_call)
            while self._idle and now - self._idle[0].idle_since > UNUSED_S:
                useless.append(self._idle.popleft())
        if useless:
            self._let_go(useless)

    def _let_go(self, direct_calls: Sequence[DirectCall], *, is_lost: bool = False) -> None:
        """Close these, and give their places free."""
        for direct_call in direct_calls:
            direct_call.close(is_lost=is_lost)
        self._free(len(direct_calls))

    def _free(self, places: int) -> None:
        """There may be so many others; with the last one of a closed client its threads go."""
        shared = None
        with self._lock:
            self._count -= places
            if self._is_closed and not self._count:
                shared, self._shared = self._shared, None
        if shared is not None:
            shared.term()

    def _go_on(
        self, direct_call: DirectCall, submission: Submission, timeout_s: float | None
    ) -> TaskOutcome:
        """Have the session of a lost direct call go on in a runner, to the end of this call."""
        waker = Waker()
        reconnector = self._make_reconnector(waker.wake)
        try:
            reconnector.search.only = direct_call.broker_id if direct_call.session.is_bound else ""

            def check_alive() -> None:
                self._check_alive()
                runner.check_alive()

            waiters = CompletionWaiters(check_alive, self._why)
            runner = ClientRunner(
                direct_call.session, waiters, waker, reconnector, broker_id=direct_call.broker_id
            )
            runner.start()
            try:
                waiters.wait_for(
                    submission,
                    lambda: submission.is_known(0),
                    timeout_s,
                    what=_what(submission.task_id(0)),
                    task_id=submission.task_id(0),
                )
            finally:
                runner.close(STAND_IN_END_S)
        finally:
            reconnector.close()
        submission.raise_refusal()
        return submission.outcome(0)


def _what(task_id: str) -> str:
    return f"the result of {task_id}"
