"""The reading side of the store, on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from typing import Final

from d8mesh.core.broker.effects import Load, Loaded
from d8mesh.core.broker.store import Question, Store, StoreAnswer, Unreadable
from d8mesh.edge.logs import event
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import D8Error

_log: Final = logging.getLogger("d8mesh.broker")


class StoreReader:
    """Asks the store what the brain asks for; `waker` has the loop look at the answers."""

    def __init__(self, store: Store, waker: Waker) -> None:
        self.answers: deque[Loaded] = deque()
        self._store, self._waker = store, waker
        self._asked: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal-reader", daemon=True)
        self._thread.start()

    def ask(self, load: Load) -> None:
        """Ask the store; `answers` will have what it says."""
        self._asked.put(load)

    def close(self) -> None:
        """End the thread."""
        self._asked.put(None)
        self._thread.join(timeout=5.0)

    def _serve(self) -> None:
        while (load := self._asked.get()) is not None:
            self.answers.append(Loaded(load.number, self._answer(load.question)))
            self._waker.wake()

    def _answer(self, question: Question) -> StoreAnswer:
        try:
            return self._store.ask(question)
        except Exception as error:  # a damaged row: the next question may be about a sound one
            what, is_known = type(question).__name__, isinstance(error, D8Error)
            event(_log, logging.ERROR, "journal.unreadable", what=what, error=repr(error))
            return Unreadable(str(error) if is_known else "the journal cannot be read here")
