"""Dask distributed: one scheduler, worker processes of one thread, nothing withheld from them."""

from __future__ import annotations

from typing import Any

import dask
from distributed import Client, LocalCluster

from bench.inside import harness
from bench.inside.noop import echo


class OnDask:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._payload = harness.payload(told)
        # the default keeps tasks back on the scheduler, which costs no-ops a third
        dask.config.set({"distributed.scheduler.worker-saturation": "inf"})
        cluster = LocalCluster(
            n_workers=told["workers"],
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=told["folder"],
        )
        self._client = Client(cluster)
        self.one()

    def all_of(self, count: int) -> None:
        """Map over all, gather all."""
        futures = self._client.map(echo, [self._payload] * count, pure=False)
        self._client.gather(futures)

    def one(self) -> None:
        """Submit one, take its result."""
        self._client.submit(echo, self._payload, pure=False).result()


if __name__ == "__main__":
    harness.serve(harness.versions("distributed"), OnDask(harness.arguments()))
