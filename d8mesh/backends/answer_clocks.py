"""One thread that looks at the clocks of all answers: who reads one waits for nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

#: How often it looks: so late may an answer be ended that is silent or too old.
CLOCK_LOOK_S: Final = 0.05
#: Without an answer to look at it ends after so long.
CLOCK_KEPT_S: Final = 10.0


class AnswerClocks:
    """Calls what looks at a clock, again and again; its thread is there while it is needed.

    Thread: any.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._looks: set[Callable[[float], None]] = set()
        self._is_there = False

    def watch(self, look: Callable[[float], None]) -> None:
        """Call `look` with the time until `forget`.

        Args:
            look: given monotonic seconds; neither waits nor raises.

        Raises:
            RuntimeError: the system has no more threads.
        """
        with self._changed:
            self._looks.add(look)
            if self._is_there:
                self._changed.notify()
                return
            self._is_there = True
        try:
            threading.Thread(target=self._serve, name="answer-clocks", daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._is_there = False
                self._looks.discard(look)
            raise

    def forget(self, look: Callable[[float], None]) -> None:
        """Call it no longer."""
        with self._changed:
            self._looks.discard(look)

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._looks and not self._changed.wait(CLOCK_KEPT_S) and not self._looks:
                    self._is_there = False
                    return
                looks = list(self._looks)
            now = time.monotonic()
            for look in looks:
                look(now)
            time.sleep(CLOCK_LOOK_S)


ANSWER_CLOCKS: Final = AnswerClocks()
