"""One thread that reads all answers that are under way: a thread of its own for each costs more.

An answer comes here when it has begun, so that its beginning is as quick as its own thread. What
has come by the time of a look is taken together.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

#: From one look to the next: so much later may a part of an answer be seen. With two hundred
#: answers of 50 tokens/s that is what two processors can bear.
READ_TOGETHER_S: Final = 0.008


@dataclass(slots=True, eq=False)
class _ReadAnswer:
    """One answer that is read."""

    connection: socket.socket
    take: Callable[[], bool]
    is_over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class AnswerLoop:
    """Reads answers while their own threads wait; its thread is there while there are any.

    Thread: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: list[_ReadAnswer] = []
        #: tells the thread of new ones; None: there is no thread
        self._wake: socket.socket | None = None

    def run(self, connection: socket.socket, take: Callable[[], bool]) -> None:
        """Call `take` whenever something has come, until it says that this was the end.

        Args:
            connection: it does not block.
            take: takes all that is there, on a thread that others need too; True: that was all.

        Raises:
            BaseException: what `take` raises.
            RuntimeError: the system has no more threads.
        """
        if take():  # what has come before
            return
        answer = _ReadAnswer(connection, take)
        with self._lock:
            self._new.append(answer)
            wake = self._wake or self._start()
            with contextlib.suppress(BlockingIOError):  # it is full: the thread is awake
                wake.send(b"\0")
        answer.is_over.wait()
        if answer.error is not None:
            raise answer.error

    def _start(self) -> socket.socket:
        woken, self._wake = socket.socketpair()
        for end in (woken, self._wake):
            end.setblocking(False)
        serving = threading.Thread(target=self._serve, args=(woken,), name="answers", daemon=True)
        try:
            serving.start()
        except RuntimeError:
            self._new.pop()
            self._end()
            woken.close()
            raise
        return self._wake

    def _end(self) -> None:
        if self._wake is not None:
            self._wake.close()
            self._wake = None

    def _serve(self, woken: socket.socket) -> None:
        with woken, selectors.DefaultSelector() as selector:
            selector.register(woken, selectors.EVENT_READ)
            while self._has_any(selector):
                for key, _ in selector.select():
                    if key.data is None:
                        woken.recv(4096)
                    elif _is_over(key.data):
                        selector.unregister(key.fileobj)
                        key.data.is_over.set()
                time.sleep(READ_TOGETHER_S)

    def _has_any(self, selector: selectors.BaseSelector) -> bool:
        """Take in what is new; False: there is nothing to read, and the thread ends."""
        with self._lock:
            new, self._new = self._new, []
            if not new and len(selector.get_map()) == 1:
                self._end()
                return False
        for answer in new:
            selector.register(answer.connection, selectors.EVENT_READ, answer)
        return True


def _is_over(answer: _ReadAnswer) -> bool:
    try:
        return answer.take()
    except BaseException as error:  # it is of its own thread
        answer.error = error
        return True


ANSWER_LOOP: Final = AnswerLoop()
