"""Results that no broker has acknowledged: counted, and kept though their link be gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from d8mesh.core.worker.broker_session import BrokerSession, ResultBatch
from d8mesh.core.worker.effects import Forget, Keep, KeptResult, WorkerEffect

#: Unacknowledged results: beyond either bound no new work is taken.
MAX_KEPT_RESULTS: Final = 50_000
MAX_KEPT_BYTES: Final = 256 * 1024 * 1024


class KeptResults:
    """What a worker owes its brokers, beside what each of its links has.

    Args:
        kept: results of earlier runs, from the outbox.
    """

    def __init__(self, kept: Sequence[KeptResult]) -> None:
        self._on_disk: set[bytes] = {row.token for row in kept}
        self._orphans: dict[str, list[KeptResult]] = {}  # by broker id, of links that are gone
        self._count = len(kept)
        self._size_bytes = sum(len(row.payload) for row in kept)
        for row in kept:
            self._orphans.setdefault(row.broker_id, []).append(row)

    @property
    def is_full(self) -> bool:
        """True when too many results await their acknowledgement."""
        return self._count >= MAX_KEPT_RESULTS or self._size_bytes >= MAX_KEPT_BYTES

    def count(self, results: int, size_bytes: int) -> None:
        """Note that links have so many more results, that large together."""
        self._count += results
        self._size_bytes += size_bytes

    def keep(self, rows: list[KeptResult]) -> list[WorkerEffect]:
        """Put results on the disk."""
        self._on_disk.update(row.token for row in rows)
        return [Keep(rows)] if rows else []

    def save(self, broker: BrokerSession) -> list[WorkerEffect]:
        """Put a link's results that are only in memory on the disk too."""
        return self.keep([row for row in broker.results() if row.token not in self._on_disk])

    def forget(self, batches: Iterable[ResultBatch]) -> list[WorkerEffect]:
        """These results need not be kept any longer."""
        tokens: list[bytes] = []
        for batch in batches:
            self._size_bytes -= batch.size
            self._count -= len(batch.ids)
            if self._on_disk:
                tokens += [token for token in batch.tokens if token in self._on_disk]
        self._on_disk.difference_update(tokens)
        return [Forget(tokens)] if tokens else []

    def strand(self, broker: BrokerSession) -> list[WorkerEffect]:
        """This link leads to its broker no more: its results wait for another."""
        effects = self.save(broker)
        own = self._orphans.setdefault(broker.broker_id, [])
        own += broker.results()
        broker.unacknowledged, broker.waiting = {}, []
        return effects

    def hand_over(self, broker: BrokerSession) -> None:
        """Give a link what waits for its broker."""
        for row in self._orphans.pop(broker.broker_id, ()):
            broker.collect(row.task_id, row.token, row.kind, row.payload)

    def owed(self) -> list[KeptResult]:
        """Return what no link has."""
        return [row for rows in self._orphans.values() for row in rows]
