"""Threads that read answers: kept for the next one, since starting one costs more than reading."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final

#: A thread that has had nothing to read for this long ends.
KEPT_READER_S: Final = 10.0

_AnswerWork = Callable[[], None]


class ReadingThreads:
    """As many threads as there are answers being read, and some that have just ended one.

    Thread: any.
    """

    def __init__(self) -> None:
        #: of each thread that has nothing to do, where it waits for it
        self._idle: list[queue.SimpleQueue[_AnswerWork]] = []

    def run(self, work: _AnswerWork) -> None:
        """Run `work`, which raises nothing, on a thread that does nothing else meanwhile.

        Raises:
            RuntimeError: the system has no more threads.
        """
        try:
            place = self._idle.pop()
        except IndexError:
            threading.Thread(
                target=self._serve, args=(work,), name="answer-reader", daemon=True
            ).start()
        else:
            place.put(work)

    def _serve(self, work: _AnswerWork) -> None:
        place: queue.SimpleQueue[_AnswerWork] = queue.SimpleQueue()
        while True:
            work()
            self._idle.append(place)
            try:
                work = place.get(timeout=KEPT_READER_S)
            except queue.Empty:
                with contextlib.suppress(ValueError):
                    self._idle.remove(place)
                    return
                work = place.get()  # somebody has just taken this thread


READING_THREADS: Final = ReadingThreads()
