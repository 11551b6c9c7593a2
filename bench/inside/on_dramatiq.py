"""dramatiq over Redis, with its Redis result backend."""

from __future__ import annotations

import os
from typing import Any, Final

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.inside import harness

#: Where the workers, which dramatiq starts by itself, find Redis.
URL: Final = "D8_BENCH_REDIS"
RESULT_MS: Final = 120_000

_broker = RedisBroker(url=os.environ.get(URL, "redis://127.0.0.1"))
_broker.add_middleware(Results(backend=RedisBackend(url=os.environ.get(URL, ""))))
dramatiq.set_broker(_broker)


def _echo(text: str) -> str:
    return text


echo = dramatiq.actor(_echo, actor_name="echo", store_results=True)


class OnDramatiq:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._text = harness.payload(told).decode()
        harness.start(
            *harness.python(
                "-m",
                "dramatiq",
                __spec__.name,
                "--processes",
                str(told["workers"]),
                "--skip-logging",
            )
        )
        self.one()

    def all_of(self, count: int) -> None:
        """Enqueue all, then take all results."""
        for message in [echo.send(self._text) for _ in range(count)]:
            message.get_result(block=True, timeout=RESULT_MS)

    def one(self) -> None:
        """Send one, take its result."""
        echo.send(self._text).get_result(block=True, timeout=RESULT_MS)


if __name__ == "__main__":
    harness.serve(harness.versions("dramatiq", "redis"), OnDramatiq(harness.arguments()))
