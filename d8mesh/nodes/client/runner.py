"""Joins the client's session to its link, its callers and the clock.

On a thread of its own, or in turns that somebody else's loop takes (`Host`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from d8mesh.core.client.effects import (
    Answered,
    Arrived,
    Connected,
    Heard,
    Lost,
    Output,
    Rejected,
    Settled,
    Silent,
    Transmit,
    merged,
)
from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.core.protocol.messages import Goodbye, Refused, Stream
from d8mesh.edge.logs import event
from d8mesh.edge.transport.connector import Connection
from d8mesh.edge.transport.sockets import DealerLink, Loop, Waker
from d8mesh.edge.waits import join
from d8mesh.errors import D8Error, NodeClosedError, ProtocolError, error_of
from d8mesh.nodes.client.completion_waiters import CompletionWaiters
from d8mesh.nodes.client.completions import Completions
from d8mesh.nodes.client.keeping import Keeping
from d8mesh.nodes.reconnector.reconnector import Reconnector

MESSAGES_PER_TURN: Final = 256
#: The longest sleep of the loop; it is woken for everything there is to do.
MAX_SLEEP_S: Final = 3600.0
#: A broken connection may take so long to be made again; then other addresses are tried too.
CUT_S: Final = 2.0
#: How often it is asked whether an orchestrator that falls silent has moved.
DOUBT_PAUSE_S: Final = 2.0
#: Messages that the connection's own queue (a thousand) does not take wait here, in their order;
#: beyond it they are as lost ones: the session says them again. How soon it is tried again.
MAX_UNSENT: Final = 100_000
UNSENT_S: Final = 0.005
#: Different warnings of the orchestrator that are logged, once each.
MAX_WARNED: Final = 1000
_log: Final = logging.getLogger("d8mesh.client")

Action: TypeAlias = Callable[[float], list[Output]]


class Host(Protocol):
    """A loop of somebody else's that takes a runner's turns."""

    def wake(self) -> None:
        """Have a turn taken soon."""

    def add(self, link: DealerLink) -> None:
        """Have a turn taken whenever something comes in here."""

    def discard(self, link: Connection) -> None:
        """Wait for this one no longer, and close it."""


class Flag(Protocol):
    """Whatever an asker waits on: a `threading.Event`, or asyncio's."""

    def set(self) -> None:
        """Let the asker look."""


class Slot:
    """Where the answer to a question arrives."""

    __slots__ = ("body", "code", "is_answered", "ready")

    def __init__(self, ready: Flag) -> None:
        self.ready = ready
        self.is_answered = False
        self.code = ""
        self.body: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        """Return what was answered.

        Raises:
            D8Error: that is what was answered.
        """
        if self.code:
            error = error_of(self.code, str(self.body.get("error") or self.code))
            error.details = self.body
            raise error
        return self.body


class ClientRunner:
    """Runs a session: on a thread of its own (`start`), or in turns that a host takes (`turn`).

    Args:
        session: the brain; nobody else may call it.
        board: where callers wait.
        waker: ends a sleep of the thread; or the host.
        reconnector: makes the connections.
        completions: what is to be called when tasks are done; None: nothing ever.
        broker_id: of the orchestrator that the session was with so far; empty: none.

    Thread: `do` and `close` may be called from any; the rest happens on the I/O thread. With a
    host all of it happens on the host's.
    """

    def __init__(
        self,
        session: ClientSession,
        waiters: CompletionWaiters,
        waker: Waker | Host,
        reconnector: Reconnector,
        *,
        completions: Completions | None = None,
        broker_id: str = "",
    ) -> None:
        self._session, self._waiters = session, waiters
        self._waker, self._reconnector = waker, reconnector
        self._inbox: deque[Action] = deque()
        self._closing = threading.Event()
        self._link: Connection | None = None
        self._unsent: deque[bytes] = deque()
        self._cut_since = self._next_doubt = 0.0
        self._broker_id = broker_id
        self.answers: dict[int, Slot] = {}
        self.listeners: dict[str, list[Callable[[Stream | None], None]]] = {}
        self.keeping = Keeping(self.listeners)
        self._warned: set[str] = set()
        #: what to do when the outcome of a submission arrives
        self.on_arrival: dict[Submission, Callable[[], None]] = {}
        #: the same for the acknowledgement of a submission, and for the answer to a question
        self.on_settled: dict[Submission, list[Callable[[], None]]] = {}
        self.on_answer: dict[int, Callable[[], None]] = {}
        #: what is to be called when tasks are done
        self.completions = completions
        #: the submission that callers still add to; the board's lock guards it
        self.open: Submission | None = None
        self.fatal: D8Error | None = None
        self.connected = threading.Event()
        self._add: Callable[[DealerLink], None]
        self._discard: Callable[[Connection], None]
        if isinstance(waker, Waker):
            self._loop = Loop(waker)
            self._add, self._discard = self._loop.add, self._let_go
        else:
            self._add, self._discard = waker.add, waker.discard
        self._thread = threading.Thread(target=self._serve, name="d8-client", daemon=True)

    @property
    def is_over_http(self) -> bool:
        """True while the link goes through the REST port."""
        return self._link is not None and not isinstance(self._link, DealerLink)

    @property
    def has_input(self) -> bool:
        """True if something has come in that no turn has taken."""
        return isinstance(self._link, DealerLink) and self._link.has_input

    @property
    def is_running(self) -> bool:
        """True while things are done: not after `close`, or the end by a fault."""
        return self.fatal is None and self._thread.is_alive() and not self._closing.is_set()

    @property
    def is_caller(self) -> bool:
        """True for who is called by the I/O thread: to wait here would be for ever."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread.start()

    def do(self, action: Action) -> None:
        """Have the I/O thread do something with the session. Thread: any."""
        self._inbox.append(action)
        self._waker.wake()

    def wake(self) -> None:
        """Have the I/O thread look around. Thread: any."""
        self._waker.wake()

    def seal(self) -> None:
        """Hand the open submission over: it stays as it is. Thread: any, under the board's lock."""
        submission, self.open = self.open, None
        if submission is not None:
            self.do(partial(self._session.submit, submission))

    def close(self, timeout_s: float) -> None:
        """Say goodbye and stop. Thread: any; on the I/O thread it stops later."""
        self._closing.set()
        self._waker.wake()
        if not self.is_caller:
            join(self._thread, timeout_s)

    def _serve(self) -> None:
        waker, loop = self._waker, self._loop
        assert isinstance(waker, Waker), "a host takes the turns"
        try:
            while not self._closing.is_set():
                loop.wait(self.sleep_s())
                self.turn(MESSAGES_PER_TURN)
        except Exception as error:  # the thread's last words: nobody may wait for ever
            self.died(error)
            raise
        finally:
            self.end()
            waker.close()

    def died(self, error: Exception) -> None:
        """Note that a turn failed: this is a bug, and there will be no other turn."""
        self.fatal = NodeClosedError(f"the client stopped: {error!r}")
        event(_log, logging.ERROR, "client.died", error=repr(error))

    def end(self) -> None:
        """Say goodbye; there will be no other turn."""
        try:
            if self._link is not None:
                self._link.send(encode(Goodbye("closed")))
                self._drop_link()
        finally:
            self._release_askers()

    def sleep_s(self) -> float:
        """Return how long there is nothing to do, if nothing comes in."""
        wait_s = 0.0 if self._inbox else self._next_deadline() - time.monotonic()
        if self._unsent:
            wait_s = min(wait_s, UNSENT_S)
        return min(max(wait_s, 0.0), MAX_SLEEP_S)

    def turn(self, limit: int) -> None:
        """Take in what has come, at most `limit` messages, and do what is due. Never waits."""
        session, inbox = self._session, self._inbox
        now = time.monotonic()
        self._take_link(now)
        self._send_unsent()
        out: list[Output] = []
        while inbox:
            out += inbox.popleft()(now)
        if self.open is not None:  # before what came in: a first task goes out at once
            self._carry_out([*out, *self._take_open(now)])
            out = []
        link = self._link
        if link is not None:
            if link.is_cut or link.is_renewed:
                out += self._mind(link, now)
            for frame in link.receive(limit):
                out += self._receive(frame, now)
        if self.open is not None:
            out += self._take_open(now)
        out += session.tick(now)
        if now >= max(session.doubt_at, self._next_doubt):
            self._next_doubt = now + DOUBT_PAUSE_S
            self._stay()
            self._reconnector.doubt()
        self._carry_out(out)

    def _next_deadline(self) -> float:
        submission = self.open
        due = min(self._session.next_deadline(), max(self._session.doubt_at, self._next_doubt))
        if self._cut_since:
            due = min(due, self._cut_since + CUT_S)
        return (
            due
            if submission is None or submission.give_up is None
            else min(due, submission.give_up)
        )

    def _take_open(self, now: float) -> list[Output]:
        """Send the open submission as soon as it need not wait: what waits grows a larger one."""
        with self._waiters.lock:
            submission = self.open
            if submission is None or self._inbox:  # what was sealed before it goes first
                return []
            is_overdue = submission.give_up is not None and submission.give_up <= now
            if not self._session.has_room and not is_overdue:
                return []
            self.open = None
        return self._session.submit(submission, now)

    def _take_link(self, now: float) -> None:
        """Use the connection that the reconnector has made."""
        link = self._reconnector.take()
        if link is None:
            return
        self._drop_link()
        self._link = link
        if isinstance(link, DealerLink):
            self._add(link)
        self._carry_out(self._session.link_up(now))

    def _mind(self, link: Connection, now: float) -> list[Output]:
        """The connection is broken, or was: what was said meanwhile may be lost."""
        self._unsent.clear()  # the session says it all again, after its greeting
        if link.is_renewed:
            link.is_renewed, self._cut_since = False, 0.0
            return self._session.link_up(now)
        if not self._cut_since:
            self._cut_since = now
            self._session.link_down()
        elif now - self._cut_since >= CUT_S:
            return [Lost(f"the connection has been cut for {CUT_S:g} s")]
        return []

    def _transmit(self, link: Connection, frame: bytes) -> None:
        is_taken = not self._unsent and link.send(frame)
        if not is_taken and len(self._unsent) < MAX_UNSENT:
            self._unsent.append(frame)

    def _send_unsent(self) -> None:
        link, unsent = self._link, self._unsent
        while unsent and link is not None and link.send(unsent[0]):
            unsent.popleft()

    def _drop_link(self) -> None:
        self._cut_since = 0.0
        self._unsent.clear()
        link, self._link = self._link, None
        if link is not None:
            self._discard(link)
        self._session.link_down()
        self.connected.clear()

    def _let_go(self, link: Connection) -> None:
        if isinstance(link, DealerLink):
            self._loop.remove(link)
        link.close()

    def _receive(self, frame: bytes, now: float) -> list[Output]:
        try:
            message = decode_to_client(frame)
            if isinstance(message, Refused) and not message.seq:
                event(_log, logging.WARNING, "refused", code=message.code, why=message.message)
            return self._session.receive(message, now)
        except ProtocolError as error:
            event(_log, logging.WARNING, "frame.bad", error=str(error))
            return []

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        for output in merged(outputs):
            match output:
                case Transmit():
                    if self._link is not None:
                        self._transmit(self._link, encode(output.message))
                case Arrived():
                    self._arrived(output.submission)
                case Settled():
                    self._settled(output.submission)
                case Answered():
                    self._answered(output)
                case Heard() | Silent():
                    self._heard(output)
                case Connected():
                    self._broker_id = output.broker_id
                    self._reconnector.proven()
                    self._waiters.moved()
                    self.connected.set()
                    event(_log, logging.INFO, "client.up", broker=output.broker_id)
                case Lost():
                    event(_log, logging.INFO, "client.lost", why=output.why)
                    self._drop_link()
                    self._stay()
                    self._reconnector.again(output.pause_s)
                case Rejected():
                    self._rejected(output)

    def _settled(self, submission: Submission) -> None:
        if submission.is_listened:
            self.keeping.settled(submission)
        for text in submission.warnings:
            if text not in self._warned and len(self._warned) < MAX_WARNED:
                self._warned.add(text)
                event(_log, logging.WARNING, "submit.warning", why=text)
        self._waiters.settled(submission)
        for then in self.on_settled.pop(submission, ()):
            then()
        if submission.refusal is not None and self.completions is not None:
            self.completions.refused(submission)

    def _stay(self) -> None:
        """Look for the same orchestrator as long as it alone knows what it was told."""
        self._reconnector.search.only = self._broker_id if self._session.is_bound else ""

    def _rejected(self, output: Rejected) -> None:
        if self.fatal is None:
            event(_log, logging.ERROR, "client.rejected", code=output.code, why=output.message)
        self.fatal = error_of(output.code, output.message)
        self._release_askers()

    def _release_askers(self) -> None:
        """Let who waits for an answer look around: there will be none."""
        for slot in list(self.answers.values()):
            slot.ready.set()
        if self.completions is not None:
            self.completions.release()

    def _answered(self, output: Answered) -> None:
        then = self.on_answer.pop(output.request, None)
        if then is not None:
            then()
        slot = self.answers.get(output.request)
        if slot is not None:
            slot.code, slot.body, slot.is_answered = output.code, output.body, True
            slot.ready.set()

    def _heard(self, output: Heard | Silent) -> None:
        if isinstance(output, Heard):
            self.tell(self.listeners.get(output.stream.id, ()), output.stream)
            return
        for task_id in output.ids:
            self.tell(self.listeners.pop(task_id, ()), None)

    def tell(
        self, listeners: Iterable[Callable[[Stream | None], None]], stream: Stream | None
    ) -> None:
        """Call these; whatever they raise is theirs and stops nobody else."""
        for heard in list(listeners):
            try:
                heard(stream)
            except Exception as error:
                event(_log, logging.ERROR, "listener.raised", error=repr(error))

    def _arrived(self, submission: Submission) -> None:
        finished = self.on_arrival.pop(submission, None)
        if finished is not None:
            finished()
        self._waiters.changed(submission)
        if submission.fresh and self.completions is not None:
            self.completions.arrived(submission)
