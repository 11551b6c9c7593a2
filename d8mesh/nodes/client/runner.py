"""Joins the client's session to its link, its callers and the clock.

On a thread of its own, or in turns that somebody else's loop takes (`Host`).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Final, Protocol, TypeAlias

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
from d8mesh.core.protocol.membership import Credentials
from d8mesh.core.protocol.messages import Goodbye, Refused
from d8mesh.edge.logs import event
from d8mesh.edge.network import host_name
from d8mesh.edge.transport.sockets import DealerLink, Loop, Waker
from d8mesh.edge.waits import join
from d8mesh.errors import D8Error, NodeClosedError, ProtocolError, error_of
from d8mesh.nodes.client.completion_waiters import CompletionWaiters
from d8mesh.nodes.client.completions import Completions
from d8mesh.nodes.client.stream_buffer import StreamBuffer
from d8mesh.nodes.client.streams import Listeners
from d8mesh.nodes.reconnector.reconnector import CUT_S, Reconnector

MESSAGES_PER_TURN: Final = 256
#: The longest sleep of the loop; it is woken for everything there is to do.
MAX_SLEEP_S: Final = 3600.0
#: How often it is asked whether an orchestrator that falls silent has moved.
DOUBT_PAUSE_S: Final = 2.0
#: Messages that the connection's own queue (a thousand) does not take wait here, in their order;
#: beyond it they are as lost ones: the session says them again. How soon it is tried again.
MAX_UNSENT: Final = 100_000
UNSENT_S: Final = 0.005
#: Different warnings of the orchestrator that are logged, once each.
MAX_WARNED: Final = 1000
#: Of a session's name.
_NAME_LETTERS: Final = "0123456789abcdefghijklmnopqrstuv"
_NAME_CHARS: Final = 16
_log: Final = logging.getLogger("d8mesh.client")

Action: TypeAlias = Callable[[float], list[Output]]


class Host(Protocol):
    """A loop of somebody else's that takes a runner's turns."""

    def wake(self) -> None:
        """Have a turn taken soon."""

    def add(self, link: DealerLink) -> None:
        """Have a turn taken whenever something comes in here."""

    def discard(self, link: DealerLink) -> None:
        """Wait for this one no longer, and close it."""


class ClientRunner:
    """Runs a session: on a thread of its own (`start`), or in turns that a host takes (`turn`).

    Args:
        session: the brain; nobody else may call it.
        waiters: where callers wait.
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
        self.session, self.waiters = session, waiters
        self._waker, self._reconnector = waker, reconnector
        self._inbox: deque[Action] = deque()
        self._closing = threading.Event()
        self._link: DealerLink | None = None
        self._unsent: deque[bytes] = deque()
        self._cut_since = self._next_doubt = 0.0
        self._broker_id = broker_id
        self.listeners = Listeners()
        self.stream_buffer = StreamBuffer(self.listeners)
        self._warned: set[str] = set()
        #: what to do when the outcome of a submission arrives
        self.on_arrival: dict[Submission, Callable[[], None]] = {}
        #: the same for the acknowledgement of a submission
        self.on_settled: dict[Submission, list[Callable[[], None]]] = {}
        #: what takes the answer to a question; None: there will be none
        self.on_answer: dict[int, Callable[[Answered | None], None]] = {}
        #: what is to be called when tasks are done
        self.completions = completions
        #: the submission that callers still add to; the waiters' lock guards it
        self.open: Submission | None = None
        self.fatal: D8Error | None = None
        #: its client is closed
        self.is_closed = False
        self._pid = os.getpid()
        self.connected = threading.Event()
        self._add: Callable[[DealerLink], None]
        self._discard: Callable[[DealerLink], None]
        if isinstance(waker, Waker):
            self._loop = Loop(waker)
            self._add, self._discard = self._loop.add, self._let_go
        else:
            self._add, self._discard = waker.add, waker.discard
        self._thread = threading.Thread(target=self._serve, name="d8-client", daemon=True)

    @property
    def is_over_http(self) -> bool:
        """True while the link goes through the REST port."""
        return self._link is not None and self._link.is_tunnelled

    @property
    def has_input(self) -> bool:
        """True if something has come in that no turn has taken."""
        return self._link is not None and self._link.has_input

    @property
    def is_forked(self) -> bool:
        """True in the child of a fork: all of this is the parent's."""
        return os.getpid() != self._pid

    def check_alive(self) -> None:
        """Make sure that something can still come.

        Raises:
            NodeClosedError: the client is closed, or this is the child of a fork.
            D8Error: the orchestrator refuses this client, until a person does something.
        """
        if self.fatal is not None:
            raise copy(self.fatal)  # each its own: an error grows with who raises it
        hopeless = self._reconnector.hopeless
        if hopeless is not None and not self.session.is_up:  # else what it says is over
            raise copy(hopeless)
        if self.is_closed:
            raise NodeClosedError
        if os.getpid() != self._pid:
            raise NodeClosedError("a client does not survive a fork: make a new one in the child")

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
        """Hand the open submission over as it is. Thread: any, under the waiters' lock."""
        submission, self.open = self.open, None
        if submission is not None:
            self.do(partial(self.session.submit, submission))

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
        session, inbox = self.session, self._inbox
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
        if link is not None and (link.is_cut or link.is_renewed):
            out += self._mind(link, now)
            link = self._link
        if link is not None:
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
        due = min(self.session.next_deadline(), max(self.session.doubt_at, self._next_doubt))
        if self._cut_since:
            due = min(due, self._cut_since + CUT_S)
        if submission is not None and submission.give_up is not None and self.session.paused_for:
            due = min(due, submission.give_up)
        return due

    def _take_open(self, now: float) -> list[Output]:
        """Send the open submission as soon as it need not wait: what waits grows a larger one."""
        with self.waiters.lock:
            submission = self.open
            if submission is None or self._inbox:  # what was sealed before it goes first
                return []
            is_overdue = submission.give_up is not None and submission.give_up <= now
            if not self.session.has_room and not (is_overdue and self.session.paused_for):
                return []
            self.open = None
        return self.session.submit(submission, now)

    def _take_link(self, now: float) -> None:
        """Use the connection that the reconnector has made."""
        link = self._reconnector.take()
        if link is None:
            return
        self._drop_link()
        self._link = link
        self._add(link)
        self._carry_out(self.session.link_up(now, link.server_key))

    def _mind(self, link: DealerLink, now: float) -> list[Output]:
        """The connection is broken, or was: what was said meanwhile may be lost."""
        self._unsent.clear()  # the session says it all again, after its greeting
        if link.is_refused:
            self._reconnector.refused(link)
            self._drop_link()
            self._stay()
            return []
        if link.is_renewed:
            link.is_renewed, self._cut_since = False, 0.0
            return self.session.link_up(now, link.server_key)
        if not self._cut_since:
            self._cut_since = now
            self.session.link_down()
        elif now - self._cut_since >= CUT_S:
            return [Lost(f"the connection has been cut for {CUT_S:g} s")]
        return []

    def _transmit(self, link: DealerLink, frame: bytes) -> None:
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
        self.session.link_down()
        self.connected.clear()

    def _let_go(self, link: DealerLink) -> None:
        self._loop.remove(link)
        link.close()

    def _receive(self, frame: bytes, now: float) -> list[Output]:
        try:
            message = decode_to_client(frame)
            if isinstance(message, Refused) and not message.seq:
                event(_log, logging.WARNING, "refused", code=message.code, why=message.message)
            return self.session.receive(message, now)
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
                    self.on_answer.pop(output.request, _nobody)(output)
                case Heard():
                    self.listeners.hear(output.stream)
                case Silent():
                    self.listeners.finish(output.ids)
                case Connected():
                    self._connected(output.broker_id)
                case Lost():
                    self._lost(output.why, output.pause_s)
                case Rejected():
                    self._rejected(output)

    def _connected(self, broker_id: str) -> None:
        if not self._reconnector.proven(broker_id):
            self._lost("another orchestrator was the first to answer")
            return
        self._broker_id = broker_id
        self.waiters.moved()
        self.connected.set()
        event(_log, logging.INFO, "client.up", broker=broker_id)

    def _lost(self, why: str, pause_s: float = 0.0) -> None:
        event(_log, logging.INFO, "client.lost", why=why)
        self._drop_link()
        self._stay()
        self._reconnector.again(pause_s)

    def _settled(self, submission: Submission) -> None:
        if submission.is_listened:
            self.stream_buffer.settled(submission)
        for text in submission.warnings:
            if text not in self._warned and len(self._warned) < MAX_WARNED:
                self._warned.add(text)
                event(_log, logging.WARNING, "submit.warning", why=text)
        self.waiters.settled(submission)
        for then in self.on_settled.pop(submission, ()):
            then()
        if submission.refusal is not None and self.completions is not None:
            self.completions.refused(submission)

    def _stay(self) -> None:
        """Look for the same orchestrator as long as it alone knows what it was told."""
        self._reconnector.search.only = self._broker_id if self.session.is_bound else ""

    def _rejected(self, output: Rejected) -> None:
        if self.fatal is None:
            event(_log, logging.ERROR, "client.rejected", code=output.code, why=output.message)
        self.fatal = error_of(output.code, output.message)
        self._release_askers()

    def _release_askers(self) -> None:
        """Let who waits for an answer look around: there will be none."""
        for then in list(self.on_answer.values()):
            then(None)
        if self.completions is not None:
            self.completions.release()

    def _arrived(self, submission: Submission) -> None:
        finished = self.on_arrival.pop(submission, None)
        if finished is not None:
            finished()
        self.waiters.changed(submission)
        if submission.fresh and self.completions is not None:
            self.completions.arrived(submission)


def _nobody(answered: Answered | None) -> None:
    """Who asked waits no longer."""


def new_session(mesh: str, credentials: Credentials) -> ClientSession:
    """Return a session with a name that nobody has had before: drawn at random."""
    name = "".join(secrets.choice(_NAME_LETTERS) for _ in range(_NAME_CHARS))
    return ClientSession(name, mesh, host_name(), credentials)
