"""The reading side of the store, on a thread of its own.

Pages of a listing take a thousand times as long as what is asked for each task, and while one is
made the loop has to wait for the interpreter again and again. So they come last, the clients that
want some take turns, and while the broker is busy they get a small part of its time.
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

#: While the broker is busy no page is made for so many times as long as the last one has computed:
#: with what the loop makes of it, listings take a hundredth of the time.
PAUSES: Final = 150
#: A page that computed for less than this, of 100 tasks or so, costs no more than other questions.
SHORT_PAGE_S: Final = 0.001
#: The longest pause; a page of 1,000 tasks computes for 10 ms.
MAX_PAUSE_S: Final = 1.0
#: It is busy if it has computed for more than this share of the time since the last page.
BUSY_SHARE: Final = 0.05
#: How often it is looked whether it still is.
BUSY_LOOK_S: Final = 0.02
#: How long it may take to end: a page of large results.
READER_END_S: Final = 5.0
_log: Final = logging.getLogger("d8mesh.broker")


class StoreReader:
    """Asks the store what the brain asks for.

    Args:
        waker: has the loop look at the answers.
        is_awaited: whether the client of this session still waits for its page.

    Thread: of the loop; `is_awaited` is called by the reader's own.
    """

    def __init__(
        self,
        store: Store,
        waker: Waker,
        *,
        is_awaited: Callable[[str], bool] = lambda session: True,
    ) -> None:
        self.answers: deque[Loaded] = deque()
        self._store, self._waker = store, waker
        self._is_awaited = is_awaited
        self._changed = threading.Condition()
        self._is_closing = False
        self._prompt: deque[Load] = deque()
        #: pages that are wanted, by client; whose turn it is first
        self._pages: OrderedDict[str, deque[Load]] = OrderedDict()
        #: when the last page was made, how long that computed, and the process by then
        self._made_at = self._took_s = self._process_s = 0.0
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
        self._thread.join(timeout=READER_END_S)

    def _serve(self) -> None:
        while (load := self._next()) is not None:
            is_page = isinstance(load.question, PageOf)
            if is_page and load.session and not self._is_awaited(load.session):
                answer: StoreAnswer = Unreadable("nobody waits for this page any more")
            else:
                begun_s = time.thread_time()
                answer = self._answer(load.question)
                if is_page:
                    self._took_s = time.thread_time() - begun_s
                    self._made_at, self._process_s = time.monotonic(), time.process_time()
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
        """Return how long no page is made from now on, and when to ask again at the latest."""
        if self._took_s < SHORT_PAGE_S:
            return 0.0
        passed_s = time.monotonic() - self._made_at
        left_s = min(self._took_s * PAUSES, MAX_PAUSE_S) - passed_s
        computed_s = time.process_time() - self._process_s
        if left_s <= 0 or (passed_s > self._took_s and computed_s < passed_s * BUSY_SHARE):
            return 0.0
        return min(left_s, BUSY_LOOK_S)

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
