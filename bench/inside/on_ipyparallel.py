"""ipyparallel (ZeroMQ): a load-balanced view of local engines."""

from __future__ import annotations

import os
from typing import Any

from bench.inside import harness
from bench.inside.noop import echo


class OnIPyParallel:
    """The client's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        os.environ["IPYTHONDIR"] = told["folder"]  # read when it is imported
        import ipyparallel

        self._payload = harness.payload(told)
        cluster = ipyparallel.Cluster(
            n=told["workers"],
            controller_ip="127.0.0.1",
            # the hub keeps no results, and an engine may hold more than one task
            controller_args=["--nodb", "--TaskScheduler.hwm=0"],
        )
        self._view = cluster.start_and_connect_sync(activate=False).load_balanced_view()
        self.one()

    def all_of(self, count: int) -> None:
        """Apply to all, take all results."""
        for result in [self._view.apply_async(echo, self._payload) for _ in range(count)]:
            result.get()

    def one(self) -> None:
        """Apply once, take the result."""
        self._view.apply_async(echo, self._payload).get()


if __name__ == "__main__":
    harness.serve(harness.versions("ipyparallel", "pyzmq"), OnIPyParallel(harness.arguments()))
