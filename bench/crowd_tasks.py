"""Handlers of `bench.crowd`: one talks once a second, one without a pause."""

from __future__ import annotations

import time
from typing import Any


def talk(data: dict[str, Any], context: Any) -> dict[str, object]:
    """Say the time, so many times."""
    for _ in range(int(data["times"])):
        context.emit({"at": time.time()})
        time.sleep(1)
    return {"success": True}


def pour(data: dict[str, Any], context: Any) -> dict[str, object]:
    """Say much, for so many seconds."""
    until = time.monotonic() + float(data["seconds"])
    while time.monotonic() < until:
        context.emit("x" * 65_536)
        time.sleep(0.02)
    return {"success": True}


def register(worker: Any) -> None:
    """Offer both."""
    worker.register("bench_talk", talk)
    worker.register("bench_pour", pour)
