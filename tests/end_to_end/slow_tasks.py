"""Handlers for tests of faults: one that takes its time and leaves a trace of every start."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from d8mesh import TaskContext, Worker


def slow(data: dict[str, object], context: TaskContext) -> object:
    """Write a line that says who started it, then take `seconds` (unless cancelled)."""
    trace = Path(str(data["trace"]))
    with trace.open("a", encoding="utf-8") as file:
        file.write(f"{context.task_id} {context.attempt} {os.getpid()}\n")
    waits = threading.Event()
    left_s = float(str(data["seconds"]))
    while left_s > 0:
        context.raise_if_cancelled()
        waits.wait(min(0.05, left_s))
        left_s -= 0.05
    return {"done": True}


def register(worker: Worker) -> None:
    """Offer the handlers (``worker --tasks``)."""
    worker.register("slow", slow)
