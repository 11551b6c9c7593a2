"""Ending with the parent: a child's standard input is a pipe of its parent's."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable


def end_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input, a pipe of the parent's, comes to its end."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1):
                pass
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
