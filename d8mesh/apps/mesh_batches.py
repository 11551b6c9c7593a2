"""Batches of tasks: all are given to the mesh at once, and none is left behind in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from d8mesh.apps import work
from d8mesh.apps.work import Outcome, SubmitsMany, cancel_all, outcomes
from d8mesh.errors import WaitTimeoutError


class MeshBatches:
    """Gives batches of tasks to the mesh and waits for their ends."""

    def __init__(
        self,
        client: SubmitsMany,
        *,
        until: float | None = None,
        on_silence: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Args:
        until: monotonic seconds when waiting is over; None waits as long as a worker of the
            mesh can run the tasks, and `work.NOBODY_S` for one.
        on_silence: told why nothing comes, once for each reason.
        """
        self.client = client
        self._until = until
        self._on_silence = on_silence
        self._reasons: set[str] = set()
        #: tasks that were submitted, and of them those that did not succeed
        self.tasks = self.failed_tasks = 0

    def ends(self, kind: str, datas: Sequence[Mapping[str, Any]]) -> Iterator[Outcome]:
        """Submit all at once; yield how each ended, as they end.

        Ending early, whatever the reason, cancels what is still under way.

        Raises:
            WaitTimeoutError: the time is over, or nobody can run them.
        """
        if not datas:
            return
        left_s = None if self._until is None else max(self._until - time.monotonic(), 0.0)
        tasks = self.client.submit_many(kind, datas, timeout=left_s)
        self.tasks += len(tasks)
        nobody_s = work.NOBODY_S if self._until is None else None
        is_whole = False
        try:
            for outcome in outcomes(
                tasks, until=self._until, on_silence=self._silent, nobody_s=nobody_s
            ):
                self.failed_tasks += outcome.result is None
                yield outcome
            is_whole = True
        finally:
            if not is_whole:
                cancel_all(tasks)

    def raise_if_late(self, left: int, total: int) -> None:
        """Raise `WaitTimeoutError` when the time is over."""
        if self._until is not None and time.monotonic() >= self._until:
            raise WaitTimeoutError(f"{left} of {total} genomes were not tried in time")

    def _silent(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._on_silence(reason)
