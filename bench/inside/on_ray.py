"""Ray: a node of its own with as many CPUs as there are workers."""

from __future__ import annotations

from typing import Any

import ray

from bench.inside import harness


def _echo(text: bytes) -> bytes:
    return text


class OnRay:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._payload = harness.payload(told)
        ray.init(
            num_cpus=told["workers"],
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=told["folder"],
            _node_ip_address="127.0.0.1",
        )
        self._echo = ray.remote(_echo)
        self.one()

    def all_of(self, count: int) -> None:
        """Call all, get all."""
        ray.get([self._echo.remote(self._payload) for _ in range(count)])

    def one(self) -> None:
        """Call one, get its result."""
        ray.get(self._echo.remote(self._payload))


if __name__ == "__main__":
    harness.serve(harness.versions("ray"), OnRay(harness.arguments()))
