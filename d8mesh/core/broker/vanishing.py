"""Workers whose connection has ended: who runs placed tasks is not waited for a whole lease then.

A process that dies closes its connections, and nothing can be sent to it any more. So workers with
placed attempts, behind which callers wait, are sent a sign of life now and then; the others are
noticed by their lease. One that lives is back within a moment.
"""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import Beat

#: A worker that lives opens a connection again in less than this.
BACK_S: Final = 0.8


def probe(state: BrokerState) -> None:
    """Send something to each worker with placed attempts, to see whether that can be done."""
    for worker in state.registry.workers.values():
        if worker.placed and worker.is_live:
            state.tell(worker, Beat(state.epoch))


def note_undelivered(worker: WorkerState, now: float) -> None:
    """Nothing could be sent to a worker."""
    if worker.vanished_at <= worker.last_heard:
        worker.vanished_at = now


def has_vanished(worker: WorkerState, now: float) -> bool:
    """Return whether nothing can be sent to a worker, nor was it heard since that is so."""
    return worker.last_heard < worker.vanished_at <= now - BACK_S
