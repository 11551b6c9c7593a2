"""Threads beside the slots: one for each attempt that runs at a service, as long as it lasts.

What such an attempt does is wait for the service, so there may be far more of them than slots.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from d8mesh.core.worker.effects import Attempt
from d8mesh.edge.child import Child

#: Attempts at services at once: a thread takes some 100 KB, and more than these wait here.
MAX_PLACED_THREADS: Final = 256
#: A thread that has had nothing to do for this long ends.
IDLE_THREAD_S: Final = 30.0

#: Runs an attempt: the number of the thread, the attempt, the thread's processes by handler.
Run: TypeAlias = Callable[[int, Attempt, dict[str, Child]], None]


class PlacedThreads:
    """As many threads as there are attempts, within a bound; idle ones end.

    Args:
        run: runs one attempt to its end, on one of the threads; raises nothing.

    Thread: `put`, `take_back` and `close` on the I/O thread.
    """

    def __init__(self, run: Run) -> None:
        #: by number, 0 to `MAX_PLACED_THREADS` - 1
        self.threads: dict[int, threading.Thread] = {}
        self._run = run
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[Attempt] = deque()
        self._idle = 0
        self._is_closed = False

    def put(self, attempt: Attempt) -> bool:
        """Run this now, or when one of the others has ended; False: there can be no thread."""
        with self._changed:
            self._waiting.append(attempt)
            if len(self._waiting) <= self._idle:
                self._changed.notify()
                return True
            if len(self.threads) >= MAX_PLACED_THREADS or self._start():
                return True
            self._waiting.pop()
            return False

    def take_back(self, link: str) -> list[Attempt]:
        """Return the attempts of `link` that have not started."""
        with self._changed:
            taken = [attempt for attempt in self._waiting if attempt.link == link]
            self._waiting = deque(each for each in self._waiting if each.link != link)
            return taken

    def close(self, until: float) -> None:
        """Let the threads end when their handlers do; wait until then (monotonic) at most."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
            threads = list(self.threads.values())
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self) -> bool:
        number = next(n for n in range(MAX_PLACED_THREADS) if n not in self.threads)
        thread = threading.Thread(
            target=self._serve, args=(number,), name=f"placed-{number}", daemon=True
        )
        self.threads[number] = thread
        self._idle += 1
        try:
            thread.start()
        except RuntimeError:  # the system has no more
            del self.threads[number]
            self._idle -= 1
            return False
        return True

    def _serve(self, number: int) -> None:
        children: dict[str, Child] = {}
        while (attempt := self._next(number)) is not None:
            self._run(number, attempt, children)
            with self._changed:
                self._idle += 1
        for child in children.values():
            child.close()

    def _next(self, number: int) -> Attempt | None:
        """Return the next attempt for a thread that counts as idle; None: it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, IDLE_THREAD_S)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            del self.threads[number]
            return None
