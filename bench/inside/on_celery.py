"""Celery over Redis, with its Redis result backend."""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Celery

from bench.inside import harness

#: Where the workers, which Celery starts by itself, find Redis.
URL: Final = "D8_BENCH_REDIS"
RESULT_S: Final = 120
#: Its guide for many short tasks: let each worker hold many.
PREFETCH: Final = "128"

app = Celery("echo", broker=os.environ.get(URL), backend=os.environ.get(URL))


def _echo(text: str) -> str:
    return text


echo = app.task(_echo, name="echo")


class OnCelery:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._text = harness.payload(told).decode()
        options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        harness.start(
            *harness.python("-m", "celery", "--app", __spec__.name, "worker"),
            *("--loglevel", "ERROR", "--concurrency", str(told["workers"])),
            *("--prefetch-multiplier", PREFETCH),
            *options,
        )
        self.one()

    def all_of(self, count: int) -> None:
        """Send all, then take all results."""
        for result in [echo.delay(self._text) for _ in range(count)]:
            result.get(timeout=RESULT_S)

    def one(self) -> None:
        """Send one, take its result."""
        echo.delay(self._text).get(timeout=RESULT_S)


if __name__ == "__main__":
    harness.serve(harness.versions("celery", "redis"), OnCelery(harness.arguments()))
