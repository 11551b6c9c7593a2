"""The reading side of the store, on a thread of its own.

Pages of a listing take a thousand times as long as what is asked for each task, and while they are
made the loop gets the interpreter a few times a second. So they come last, the clients that want
some take turns, and while the loop is at work they get a small part of the time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from typing import Final

from d8mesh.core.broker.effects import Load, Loaded
from d8mesh.core.broker.store import PageOf, Question, Store, StoreAnswer, Unreadable
from d8mesh.edge.logs import event
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import D8Error

#: After a page the loop is left alone for as long as that took, and if it is at work so many times
#: longer: with what is made of a page there, listings take a twentieth of the time.
PAUSES: Final = 40
#: The longest pause: a page of large results may have waited for the disk.
MAX_PAUSE_S: Final = 0.5
#: Turns of the loop that a page itself causes, in the time that it took: its answer, what that
#: brings, and clocks.
IDLE_TURNS: Final = 5
END_S: Final = 5.0
_log: Final = logging.getLogger("d8mesh.broker")


class StoreReader:
    """Asks the store what the brain asks for; `waker` has the loop look at the answers."""

    def __init__(self, store: Store, waker: Waker) -> None:
        self.answers: deque[Loaded] = deque()
        #: turns of the loop, which counts them here
        self.turns = 0
        self._store, self._waker = store, waker
        self._changed = threading.Condition()
        self._is_closing = False
        self._prompt: deque[Load] = deque()
        #: pages that are wanted, by client; whose turn it is first
        self._pages: OrderedDict[str, deque[Load]] = OrderedDict()
        #: when the last page was made, how long that took, and the loop's turns by then
        self._made_at, self._took_s, self._turns_then = 0.0, 0.0, 0
        self._thread = threading.Thread(target=self._serve, name="journal-reader", daemon=True)
        self._thread.start()

    def ask(self, load: Load) -> None:
        """Ask the store; `answers` will have what it says."""
        with self._changed:
            if isinstance(load.question, PageOf):
                self._pages.setdefault(load.session, deque()).append(load)
            else:
                self._prompt.append(load)
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout=END_S)

    def _serve(self) -> None:
        while (load := self._next()) is not None:
            begun = time.monotonic()
            answer = self._answer(load.question)
            if isinstance(load.question, PageOf):
                self._made_at = time.monotonic()
                self._took_s, self._turns_then = self._made_at - begun, self.turns
            self.answers.append(Loaded(load.number, answer))
            self._waker.wake()

    def _next(self) -> Load | None:
        """Wait for the next question; None: no more are answered."""
        with self._changed:
            while not self._is_closing:
                if self._prompt:
                    return self._prompt.popleft()
                pause_s = self._pause_s() if self._pages else None
                if pause_s == 0.0:
                    return self._next_page()
                self._changed.wait(pause_s)
        return None

    def _pause_s(self) -> float:
        """Return how long no page is made from now on."""
        passed_s = time.monotonic() - self._made_at
        if passed_s < self._took_s:
            return min(self._took_s - passed_s, MAX_PAUSE_S)
        if self.turns - self._turns_then <= IDLE_TURNS:
            return 0.0
        return max(0.0, min(self._took_s * PAUSES, MAX_PAUSE_S) - passed_s)

    def _next_page(self) -> Load:
        session, loads = self._pages.popitem(last=False)
        load = loads.popleft()
        if loads:
            self._pages[session] = loads
        return load

    def _answer(self, question: Question) -> StoreAnswer:
        try:
            return self._store.ask(question)
        except Exception as error:  # a damaged row: the next question may be about a sound one
            what, is_known = type(question).__name__, isinstance(error, D8Error)
            event(_log, logging.ERROR, "journal.unreadable", what=what, error=repr(error))
            return Unreadable(str(error) if is_known else "the journal cannot be read here")
