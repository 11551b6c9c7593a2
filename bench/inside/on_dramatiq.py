"""dramatiq over Redis. Results come through a Redis list, not through its result backend.

Its backend answers one question for each result; a list that is emptied in one go is three
times as fast, so this is the kinder comparison.
"""

from __future__ import annotations

import os
from typing import Any, Final

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from bench.inside import harness

#: Where the workers, which dramatiq starts by itself, find Redis.
URL: Final = os.environ.get("D8_BENCH_REDIS", "redis://127.0.0.1")
RESULTS: Final = "d8.results"
RESULT_S: Final = 100

dramatiq.set_broker(RedisBroker(url=URL))
_redis = redis.Redis.from_url(URL)


def _echo(text: str) -> None:
    _redis.rpush(RESULTS, text)


echo = dramatiq.actor(_echo, actor_name="echo")


class OnDramatiq:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._text = harness.payload(told).decode()
        options = ["--processes", str(told["workers"]), "--skip-logging"]
        harness.start(*harness.python("-m", "dramatiq", __spec__.name, *options))
        self.one()

    def all_of(self, count: int) -> None:
        """Enqueue all, then take all results."""
        for _ in range(count):
            echo.send(self._text)
        taken = 0
        while taken < count:
            taken += len(_redis.lpop(RESULTS, count) or ())
            if taken < count:
                self._take_one()
                taken += 1

    def one(self) -> None:
        """Send one, take its result."""
        echo.send(self._text)
        self._take_one()

    @staticmethod
    def _take_one() -> None:
        if _redis.blpop([RESULTS], timeout=RESULT_S) is None:
            raise TimeoutError(f"no result within {RESULT_S} s")


if __name__ == "__main__":
    harness.serve(harness.versions("dramatiq", "redis"), OnDramatiq(harness.arguments()))
