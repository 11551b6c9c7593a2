"""What ends a worker from outside: Ctrl-C, SIGTERM, on Windows Ctrl-Break."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def signals_told_to(stops: queue.SimpleQueue[None]) -> Iterator[None]:
    """Let the first signal be told to `stops` and the second end the process."""
    is_first = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        del frame
        if not is_first:
            os._exit(128 + number)
        is_first = False
        stops.put(None)

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    before = {
        number: signal.signal(number, handle)
        for name in names
        if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
