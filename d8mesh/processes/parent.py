"""Ending when told to: by a signal, or by the end of the parent, whose pipe standard input is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end: Ctrl-C, and the system's own.

    On Windows that is Ctrl-Break, which reaches every process of a console, whatever its group;
    SIGTERM is never sent there.
    """
    other = "SIGBREAK" if sys.platform == "win32" else "SIGTERM"
    return (signal.SIGINT, getattr(signal, other))


def end_when_told(stop: Callable[[], None], *, with_parent: bool = True) -> None:
    """Call `stop` when a signal asks for it, or, if that is wanted, when the parent ends."""
    for number in stop_signals():
        signal.signal(number, lambda *_: stop())
    if with_parent:
        end_with_parent(stop)


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
