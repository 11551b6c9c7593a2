"""The reading side of the store, on a thread of its own.

Pages of a listing take a thousand times as long as what is asked for each task, and while one is
made the loop has to wait for the interpreter again and again. So they come last, the clients that
want some take turns, and while there are tasks to do they get a small part of the time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from d8mesh.core.broker.effects import Load, Loaded
from d8mesh.core.broker.store import PageOf, Question, Store, StoreAnswer, Unreadable
from d8mesh.edge.logs import event
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import D8Error

#: While there are tasks to do, no page is made for so many times as long as the last one took: with
#: what the loop makes of it, listings take a twentieth of the time.
PAUSES: Final = 40
#: The longest pause: what took long has waited for the disk, or for the loop.
MAX_PAUSE_S: Final = 0.25
END_S: Final = 5.0
_log: Final = logging.getLogger("d8mesh.broker")


class StoreReader:
    """Asks the store what the brain asks for.

    Args:
        waker: has the loop look at the answers.
        is_at_work: whether there are tasks to do.
        is_awaited: whether the client of this session still waits for its page.

    Thread: of the loop; the last two are called by the reader's own.
    """

    def __init__(
        self,
        store: Store,
        waker: Waker,
        *,
        is_at_work: Callable[[], bool] = lambda: False,
        is_awaited: Callable[[str], bool] = lambda session: True,
    ) -> None:
        self.answers: deque[Loaded] = deque()
        self._store, self._waker = store, waker
        self._is_at_work, self._is_awaited = is_at_work, is_awaited
        self._changed = threading.Condition()
        self._is_closing = False
        self._prompt: deque[Load] = deque()
        #: pages that are wanted, by client; whose turn it is first
        self._pages: OrderedDict[str, deque[Load]] = OrderedDict()
        #: when the last page was made, and how long that took
        self._made_at = self._took_s = 0.0
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
            is_page = isinstance(load.question, PageOf)
            if is_page and load.session and not self._is_awaited(load.session):
                answer: StoreAnswer = Unreadable("nobody waits for this page any more")
            else:
                begun = time.monotonic()
                answer = self._answer(load.question)
                if is_page:
                    self._made_at = time.monotonic()
                    self._took_s = self._made_at - begun
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
        if not self._is_at_work():
            return 0.0
        pause_s = min(self._took_s * PAUSES, MAX_PAUSE_S)
        return max(0.0, self._made_at + pause_s - time.monotonic())

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
