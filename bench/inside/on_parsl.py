"""Parsl's HighThroughputExecutor (ZeroMQ), one block on this machine."""

from __future__ import annotations

from typing import Any, Final

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from bench.inside import harness
from bench.inside.noop import echo

#: Tasks that wait at each worker: its documentation's advice for short ones.
PREFETCH: Final = 100


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
            prefetch_capacity=PREFETCH,
            encrypted=False,  # nobody else's wire is encrypted here
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(
            Config(
                executors=[executor],
                run_dir=told["folder"],
                usage_tracking=0,
                initialize_logging=False,
                strategy="none",
            )
        )
        self._echo = parsl.python_app(echo)
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
