"""A session that runs on its caller's own thread: one task at a time, and nobody to be woken.

What a `Client` does on a thread of its own costs two wake-ups of threads for each task, which is
most of the way of a task with one in flight. A hotline has a connection and a `ClientSession` of
its own instead. While all goes well it needs nobody; when its connection is lost, the same
session goes on in a `Runner`, which knows how to find the orchestrator again.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from d8mesh.config import Config
from d8mesh.core.client_session import ClientSession, Connected, Lost, Output, Rejected, Transmit
from d8mesh.core.codec import decode_to_client, encode
from d8mesh.core.messages import Goodbye, Group, Outcomes
from d8mesh.core.parcel import Parcel
from d8mesh.edge.logs import event
from d8mesh.edge.sockets import DealerLink, Waker
from d8mesh.errors import BrokerUnavailableError, ProtocolError, WaitTimeoutError, error_of
from d8mesh.nodes.client.board import Board
from d8mesh.nodes.client.dial import Dialler
from d8mesh.nodes.client.patience import countdown, give_up
from d8mesh.nodes.client.runner import CUT_S, Runner

#: Calls of one client that have a hotline at the same time: with more threads than this the
#: batches of the shared session are quicker.
MAX_HOTLINES: Final = 16
#: The clocks, the connection and the client are looked at this often while a call waits.
LOOK_S: Final = 0.25
#: After a pause of this long the orchestrator is greeted again: it may have forgotten us.
IDLE_S: Final = 3.0
#: Frames taken from a connection that was idle.
STALE_FRAMES: Final = 1000
#: Of the host's name that the orchestrator is told.
MAX_HOST_CHARS: Final = 100
#: How long the thread that went on for a lost hotline may take to end.
END_S: Final = 3.0
_log: Final = logging.getLogger("d8mesh.client")

#: How a task ended: one of the states of `core.messages`, its recorded result, its id.
Outcome: TypeAlias = tuple[int, bytes, str]


class HotlineLostError(Exception):
    """The connection is of no use any more; the session can go on elsewhere."""


class Hotline:
    """One connection, and the session on it.

    Args:
        endpoint: ``tcp://HOST:PORT`` of the broker.
        name: of the session, never used before.
        session: the brain, which has that name.

    Raises:
        BrokerUnavailableError: there is no connecting to `endpoint`.

    Thread: one at a time.
    """

    def __init__(self, endpoint: str, name: str, session: ClientSession) -> None:
        self.endpoint, self.name, self.session = endpoint, name, session
        self.broker_id = ""
        self._link = DealerLink(endpoint)
        self._next_n = 0
        self._used = -math.inf
        self._cut_since = 0.0
        #: an outcome that the session is told of while the next one is awaited, and when it came
        self._untold: tuple[Outcomes, float] | None = None

    def parcel(self, group: Group) -> Parcel:
        """Return a parcel with the next task."""
        n, self._next_n = self._next_n, self._next_n + 1
        parcel = Parcel(self.name, n, [group], 1)
        parcel.states, parcel.payloads, parcel.missing = bytearray(1), [None], 1
        return parcel

    def call(
        self, parcel: Parcel, timeout_s: float | None, check_alive: Callable[[], None]
    ) -> Outcome:
        """Submit a parcel and wait for its outcome.

        Args:
            parcel: of one task, from `parcel`.
            timeout_s: how long to wait; None: as long as it takes.
            check_alive: raises when waiting has become useless; called now and then.

        Raises:
            HotlineLostError: the connection was lost; the session has the parcel.
            TaskRejectedError: it was refused.
            WaitTimeoutError: `timeout_s` is over.
        """
        session, link = self.session, self._link
        now = time.monotonic()
        until = math.inf if timeout_s is None else now + timeout_s
        next_look = now + LOOK_S
        if now - self._used > IDLE_S:
            session.link_down()
            self._carry_out(session.submit(parcel, now))  # it waits for the greeting's answer
            self._greet(now)
        else:
            self._carry_out(session.submit(parcel, now))
            self._tell()
        task_id = parcel.task_id(0)
        while True:
            frame = link.await_frame(max(0.0, min(next_look, until) - now))
            now = time.monotonic()
            outcome = None if frame is None else self._receive(frame, task_id, now)
            if outcome is not None:
                self._used = now
                return outcome
            if now >= next_look:
                next_look = now + LOOK_S
                check_alive()
                self._look(now)
            if parcel.refusal is not None:
                raise error_of(parcel.refusal.code, parcel.refusal.message)
            if now >= until:
                raise WaitTimeoutError(f"the result has not come within {timeout_s:g} s")

    def cut(self) -> None:
        """Let the connection go."""
        self._tell()
        self.session.link_down()
        self._link.close()

    def close(self) -> None:
        """Say goodbye and let the connection go."""
        self._link.send(encode(Goodbye("closed")))
        self.cut()

    def _greet(self, now: float) -> None:
        """Say HELLO: for the first time, or after a pause in which nobody listened here."""
        self._tell()
        self._link.look()
        self._link.is_renewed, self._cut_since = False, 0.0
        for frame in self._link.receive(STALE_FRAMES):
            self._receive(frame, "", now)
        self._carry_out(self.session.link_up(now))

    def _look(self, now: float) -> None:
        """Notice a broken connection, and do what is due."""
        link = self._link
        link.look()
        if link.is_renewed:
            link.is_renewed, self._cut_since = False, 0.0
            self._carry_out(self.session.link_up(now))
        elif link.is_cut:
            self._cut_since = self._cut_since or now
            if now - self._cut_since >= CUT_S:
                raise HotlineLostError(f"cut for {CUT_S:g} s")
        if now >= self.session.doubt_at:
            raise HotlineLostError("the orchestrator does not answer")
        self._carry_out(self.session.tick(now))

    def _receive(self, frame: bytes, task_id: str, now: float) -> Outcome | None:
        """Take in a frame; return the outcome of the task that is awaited, if this is it."""
        try:
            message = decode_to_client(frame)
            if type(message) is Outcomes and message.ids == [task_id]:
                self._untold = message, now
                return message.states[0], message.payloads[0], task_id
            self._carry_out(self.session.receive(message, now))
        except ProtocolError as error:
            event(_log, logging.WARNING, "frame.bad", error=str(error))
        return None

    def _tell(self) -> None:
        """Tell the session of the last outcome: nobody waits for that any more."""
        if self._untold is not None:
            (message, then), self._untold = self._untold, None
            self._carry_out(self.session.receive(message, then))

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Transmit():
                    self._link.send(encode(output.message))
                case Connected():
                    self._meet(output.broker_id)
                case Lost():
                    raise HotlineLostError(output.why)
                case Rejected():
                    raise HotlineLostError(output.message)

    def _meet(self, broker_id: str) -> None:
        """Notice an orchestrator that took another's address."""
        if self.session.is_bound and self.broker_id not in ("", broker_id):
            raise HotlineLostError(f"{broker_id} answers in place of {self.broker_id}")
        self.broker_id = broker_id


class Hotlines:
    """The hotlines of one client, made when they are needed and kept for the next call.

    Args:
        config: the settings; its mesh is the session's.
        make_dialler: returns what finds the orchestrator again, given what it is to wake.
        make_name: returns a new session's name.
        check_alive: raises when waiting has become useless.

    Thread: any.
    """

    def __init__(
        self,
        config: Config,
        *,
        make_dialler: Callable[[Callable[[], None]], Dialler],
        make_name: Callable[[], str],
        check_alive: Callable[[], None],
    ) -> None:
        self._mesh, self._make_dialler, self._make_name = config.mesh, make_dialler, make_name
        self._check_alive = check_alive
        self._lock = threading.Lock()
        self._idle: deque[Hotline] = deque()
        self._count = 0  #: idle and in use
        self._is_closed = False

    def call(self, endpoint: str, group: Group, timeout_s: float | None) -> Outcome | None:
        """Submit one task and wait for its outcome.

        Args:
            endpoint: ``tcp://HOST:PORT`` of the broker.
            group: of one task.
            timeout_s: how long to wait; None: as long as it takes.

        Returns:
            The outcome; None: all hotlines are in use, or none can be made; nothing was submitted.

        Raises:
            TaskRejectedError: it was refused.
            WaitTimeoutError: `timeout_s` is over.
        """
        hotline = self._take(endpoint)
        if hotline is None:
            return None
        left_s = countdown(timeout_s)
        parcel = hotline.parcel(group)
        parcel.give_up = give_up(timeout_s)
        try:
            outcome = hotline.call(parcel, timeout_s, self._check_alive)
        except HotlineLostError as error:
            event(_log, logging.INFO, "hotline.lost", why=str(error))
            self._forget()
            hotline.cut()
            return self._go_on(hotline, parcel, left_s())
        except BaseException:  # also Ctrl-C: what the session was at is unknown now
            self._forget()
            hotline.close()
            raise
        self._give_back(hotline)
        return outcome

    def close(self) -> None:
        """Close those that are idle; the others follow when their calls end."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, deque()
        for hotline in idle:
            hotline.close()

    def _take(self, endpoint: str) -> Hotline | None:
        """Return one to `endpoint` for the caller alone; None: there can be no more."""
        with self._lock:
            hotline = self._idle.pop() if self._idle else None
            is_full = hotline is None and (self._is_closed or self._count >= MAX_HOTLINES)
            self._count += hotline is None and not is_full
        if hotline is not None and hotline.endpoint == endpoint:
            return hotline
        if hotline is not None:  # the client is elsewhere by now
            hotline.close()
        if is_full:
            return None
        try:
            name = self._make_name()
            session = ClientSession(name, self._mesh, socket.gethostname()[:MAX_HOST_CHARS])
            return Hotline(endpoint, name, session)
        except BrokerUnavailableError:
            self._forget()
            return None
        except BaseException:  # also Ctrl-C
            self._forget()
            raise

    def _give_back(self, hotline: Hotline) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(hotline)
                return
        self._forget()
        hotline.close()

    def _forget(self) -> None:
        """One that was in use will not be used again."""
        with self._lock:
            self._count -= 1

    def _go_on(self, hotline: Hotline, parcel: Parcel, timeout_s: float | None) -> Outcome:
        """Have the session of a lost hotline go on in a runner, to the end of this call."""
        waker = Waker()
        dialler = self._make_dialler(waker.wake)
        dialler.only = hotline.broker_id if hotline.session.is_bound else ""

        def check_alive() -> None:
            self._check_alive()
            if runner.fatal is not None:
                raise runner.fatal

        board = Board(check_alive)
        runner = Runner(hotline.session, board, waker, dialler, broker_id=hotline.broker_id)
        runner.start()
        try:
            board.wait_for(
                parcel,
                lambda: bool(parcel.states[0]) or parcel.refusal is not None,
                timeout_s,
                what="the result",
            )
        finally:
            runner.close(END_S)
            dialler.close()
        if parcel.refusal is not None:
            raise error_of(parcel.refusal.code, parcel.refusal.message)
        return parcel.states[0], parcel.payloads[0] or b"", parcel.task_id(0)
