"""The client's I/O thread: joins the session to its link, its callers and the clock."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from d8mesh.core.client_session import (
    Answered,
    Arrived,
    ClientSession,
    Connected,
    Heard,
    Lost,
    Output,
    Parcel,
    Rejected,
    Settled,
    Transmit,
)
from d8mesh.core.codec import decode_to_client, encode
from d8mesh.core.messages import Goodbye, Stream
from d8mesh.edge.logs import event
from d8mesh.edge.sockets import DealerLink, Loop, Waker
from d8mesh.errors import D8Error, NodeClosedError, ProtocolError, error_of
from d8mesh.nodes.client.board import Board
from d8mesh.nodes.client.dial import Connection, Dialler

MESSAGES_PER_TURN: Final = 256
#: The longest sleep of the loop; it is woken for everything there is to do.
MAX_SLEEP_S: Final = 3600.0
_log: Final = logging.getLogger("d8mesh.client")

Action: TypeAlias = Callable[[float], list[Output]]


class Slot:
    """Where the answer to a question arrives."""

    __slots__ = ("body", "code", "ready")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.code = ""
        self.body: dict[str, Any] = {}


class Runner:
    """Runs a session on a thread of its own.

    Thread: `do` may be called from any; everything else here happens on the I/O thread.
    """

    def __init__(
        self, session: ClientSession, board: Board, waker: Waker, dialler: Dialler
    ) -> None:
        self._session, self._board = session, board
        self._waker, self._dialler = waker, dialler
        self._inbox: deque[Action] = deque()
        self._closing = threading.Event()
        self._link: Connection | None = None
        self.answers: dict[int, Slot] = {}
        self.listeners: dict[str, list[Callable[[Stream | None], None]]] = {}
        #: id of a parcel -> what to do when its outcome arrives
        self.on_arrival: dict[int, Callable[[], None]] = {}
        self.fatal: D8Error | None = None
        self.connected = threading.Event()
        self._loop = Loop(waker)
        self._thread = threading.Thread(target=self._serve, name="d8-client", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def do(self, action: Action) -> None:
        """Have the I/O thread do something with the session. Thread: any."""
        self._inbox.append(action)
        self._waker.wake()

    def close(self, timeout_s: float) -> None:
        """Say goodbye and stop. Thread: any other."""
        self._closing.set()
        self._waker.wake()
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        session, inbox = self._session, self._inbox
        try:
            while not self._closing.is_set():
                wait_s = 0.0 if inbox else session.next_deadline() - time.monotonic()
                self._loop.wait(min(max(wait_s, 0.0), MAX_SLEEP_S))
                now = time.monotonic()
                self._take_link(now)
                out: list[Output] = []
                while inbox:
                    out += inbox.popleft()(now)
                if self._link is not None:
                    for frame in self._link.receive(MESSAGES_PER_TURN):
                        out += self._receive(frame, now)
                out += session.tick(now)
                self._carry_out(out)
        except Exception as error:  # the thread's last words: nobody may wait for ever
            self.fatal = NodeClosedError(f"the client stopped: {error}")
            event(_log, logging.ERROR, "client.died", error=repr(error))
            raise
        finally:
            if self._link is not None:
                self._link.send(encode(Goodbye("closed")))
                self._drop_link()
            self._waker.close()

    def _take_link(self, now: float) -> None:
        """Use the connection that the dialler has made."""
        link = self._dialler.take()
        if link is None:
            return
        self._drop_link()
        self._link = link
        if isinstance(link, DealerLink):
            self._loop.add(link)
        self._carry_out(self._session.link_up(now))

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if isinstance(link, DealerLink):
            self._loop.remove(link)
        if link is not None:
            link.close()
        self._session.link_down()
        self.connected.clear()

    def _receive(self, frame: bytes, now: float) -> list[Output]:
        try:
            return self._session.receive(decode_to_client(frame), now)
        except ProtocolError as error:
            event(_log, logging.WARNING, "frame.bad", error=str(error))
            return []

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case Transmit():
                    if self._link is not None:
                        self._link.send(encode(output.message))
                case Arrived():
                    self._arrived(output.parcel)
                case Settled():
                    self._board.settled(output.parcel)
                case Answered():
                    self._answered(output)
                case Heard():
                    self._heard(output.stream)
                case Connected():
                    self.connected.set()
                    event(_log, logging.INFO, "client.up", broker=output.broker_id)
                case Lost():
                    event(_log, logging.INFO, "client.lost", why=output.why)
                    self._drop_link()
                    self._dialler.again()
                case Rejected():
                    self._rejected(output)

    def _rejected(self, output: Rejected) -> None:
        self.fatal = error_of(output.code, output.message)
        event(_log, logging.ERROR, "client.rejected", code=output.code, message=output.message)

    def _answered(self, output: Answered) -> None:
        slot = self.answers.get(output.request)
        if slot is not None:
            slot.code, slot.body = output.code, output.body
            slot.ready.set()

    def _heard(self, stream: Stream) -> None:
        for heard in self.listeners.get(stream.id, ()):
            heard(stream)

    def _arrived(self, parcel: Parcel) -> None:
        finished = self.on_arrival.pop(id(parcel), None)
        if finished is not None:
            finished()
        self._board.changed(parcel)
