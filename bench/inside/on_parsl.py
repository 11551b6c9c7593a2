"""Parsl's HighThroughputExecutor (ZeroMQ), one block on this machine."""

from __future__ import annotations

from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from bench.inside import harness


def _echo(text: bytes) -> bytes:
    return text


class OnParsl:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._payload = harness.payload(told)
        executor = HighThroughputExecutor(
            label="here",
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=told["workers"],
            cores_per_worker=0.5,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(Config(executors=[executor], run_dir=told["folder"], usage_tracking=0))
        self._echo = parsl.python_app(_echo)
        self.one()

    def all_of(self, count: int) -> None:
        """Call all, take all results."""
        for future in [self._echo(self._payload) for _ in range(count)]:
            future.result()

    def one(self) -> None:
        """Call one, take its result."""
        self._echo(self._payload).result()


if __name__ == "__main__":
    harness.serve(harness.versions("parsl"), OnParsl(harness.arguments()))
