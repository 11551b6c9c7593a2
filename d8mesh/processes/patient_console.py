"""Texts on a worker's console, printed by a thread of its own.

A terminal that is stopped, or a pipe that nobody reads, must not hold up the handlers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from d8mesh.edge.terminal import say_anyway

#: Texts that wait to be printed; of more the oldest are left out, the log has them.
MAX_WAITING_TEXTS: Final = 100
#: How long the last of them may take when the worker ends.
LAST_TEXTS_S: Final = 1.0


class PatientConsole:
    """Prints what it is shown, in order, by whatever thread."""

    def __init__(self, say: Callable[[str], None] = say_anyway) -> None:
        self._say = say
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING_TEXTS)
        self._calls = threading.Semaphore(0)
        self._is_closed = False
        self._thread = threading.Thread(target=self._print, name="console", daemon=True)
        self._thread.start()

    def show(self, text: str) -> None:
        """Print this when its turn comes; returns at once."""
        self._waiting.append(text)
        self._calls.release()

    def close(self) -> None:
        """Print what waits, if that is possible soon, and end."""
        self._is_closed = True
        self._calls.release()
        self._thread.join(LAST_TEXTS_S)

    def _print(self) -> None:
        while self._calls.acquire():
            if self._waiting:
                self._say(self._waiting.popleft())
            elif self._is_closed:
                return
