"""Ending with the parent: a child's standard input is a pipe of its parent's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable


def end_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input, a pipe of the parent's, comes to its end."""

    def watch() -> None:
        # Not through `sys.stdin`: its lock, held by this thread, would abort the interpreter
        # when it ends while nothing has come.
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 64):
                pass
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
