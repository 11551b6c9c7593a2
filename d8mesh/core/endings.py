"""How tasks end: record the outcome once, free the seat, tell who awaits it.

Every way to a final state goes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from d8mesh.core.effects import Peer
from d8mesh.core.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    SOFT_FRAME_BYTES,
    Outcomes,
    Stop,
)
from d8mesh.core.pool import Pool
from d8mesh.core.records import Batch
from d8mesh.core.task import Cancelled, Completed, Failed

#: The longest reason kept in a history; the recorded result holds the whole.
MAX_REASON_CHARS: Final = 500


class Endings:
    """Completes, fails and cancels tasks of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def complete(
        self, worker_id: str, ids: list[str], ns: list[int], payloads: list[bytes]
    ) -> None:
        """Record successes of `worker_id`; every id is unfinished and stands once."""
        self._settle(ids, COMPLETED_STATE, payloads, worker_id)
        self._pool.record(Completed(worker_id, ids, ns, payloads, self._pool.at))
        self._forget_emptied()

    def fail(self, worker_id: str, ids: list[str], payloads: list[bytes], *, why: str) -> None:
        """Record final failures; `worker_id` is empty when no worker is to blame."""
        ns = self._attempts(ids)
        self._settle(ids, FAILED_STATE, payloads, worker_id)
        self._pool.record(Failed(worker_id, ids, ns, payloads, self._pool.at, why))
        self._forget_emptied()

    def fail_for(self, ids: list[str], *, code: str, why: str) -> None:
        """Record final failures that no worker reported, with a result made here."""
        payload = failure_payload(why, code)
        self.fail("", ids, [payload] * len(ids), why=why)

    def cancel(self, ids: list[str]) -> None:
        """Record the cancellation of unfinished tasks and stop those that run."""
        payloads = [failure_payload("cancelled", "task.cancelled")] * len(ids)
        ns = self._attempts(ids)
        self._settle(ids, CANCELLED_STATE, payloads, "")
        self._pool.record(Cancelled(ids, ns, payloads, self._pool.at))
        self._forget_emptied()

    def _attempts(self, ids: list[str]) -> list[int]:
        tasks = self._pool.ledger.tasks
        return [tasks[task_id].n if task_id in tasks else 0 for task_id in ids]

    def _settle(self, ids: list[str], state: int, payloads: Sequence[bytes], by: str) -> None:
        """Collect who is to be told, and take the tasks out of the hands that hold them."""
        pool = self._pool
        tasks, seats = pool.ledger.tasks, pool.roster.seats
        watching = pool.batch_watchers
        told: dict[str, tuple[list[str], list[bytes]]] = {}
        stops: dict[str, list[str]] = {}
        batch: Batch | None = None
        mine: tuple[list[str], list[bytes]] | None = None
        is_singly_awaited = bool(pool.task_watchers or pool.listeners)
        for task_id, payload in zip(ids, payloads, strict=True):
            task = tasks.get(task_id)
            if task is not None:
                home = task.batch
                seat = seats.get(task.worker_id) if task.worker_id else None
                was_held = seat is not None and seat.outstanding.pop(task_id, None) is not None
                if was_held and task.worker_id != by:
                    stops.setdefault(task.worker_id, []).append(task_id)
            else:
                found = pool.ledger.find(task_id)
                assert found is not None  # callers checked that the task is unfinished
                home = found[0]
            if home is not batch:
                batch = home
                watcher = watching.get(home.order)
                mine = None if watcher is None else told.setdefault(watcher, ([], []))
            if mine is not None:
                mine[0].append(task_id)
                mine[1].append(payload)
            if is_singly_awaited:
                self._tell_single(told, task_id, payload, watching.get(home.order))
        self._stop(stops, "cancelled" if state == CANCELLED_STATE else "no longer wanted")
        for session, (told_ids, told_payloads) in told.items():
            self.tell(session, told_ids, bytes([state]) * len(told_ids), told_payloads)

    def _tell_single(
        self,
        told: dict[str, tuple[list[str], list[bytes]]],
        task_id: str,
        payload: bytes,
        watcher: str | None,
    ) -> None:
        pool = self._pool
        for session in pool.task_watchers.pop(task_id, ()):
            pool.clients[session].watched.discard(task_id)
            if session != watcher:
                mine = told.setdefault(session, ([], []))
                mine[0].append(task_id)
                mine[1].append(payload)
        for session in pool.listeners.pop(task_id, ()):
            pool.clients[session].listened.discard(task_id)

    def _stop(self, stops: dict[str, list[str]], reason: str) -> None:
        for worker_id, ids in stops.items():
            seat = self._pool.roster.seats[worker_id]
            if seat.is_live and seat.peer.routing_id and seat.boot_id:
                self._pool.send(seat.peer, Stop(ids, reason))
            self._pool.roster.refresh(seat)

    def tell(self, session: str, ids: list[str], states: bytes, payloads: Sequence[bytes]) -> None:
        """Send outcomes to a client, cut to fitting frames, after their commit."""
        client = self._pool.clients.get(session)
        if client is None:
            return
        start = size = 0
        for end, payload in enumerate(payloads):
            size += len(payload) + 40  # an id, its state and the framing
            if size > SOFT_FRAME_BYTES and end > start:
                self._send_part(client.peer, ids, states, payloads, slice(start, end))
                start, size = end, len(payload)
        self._send_part(client.peer, ids, states, payloads, slice(start, None))

    def _send_part(
        self, peer: Peer, ids: list[str], states: bytes, payloads: Sequence[bytes], part: slice
    ) -> None:
        self._pool.send(peer, Outcomes(ids[part], states[part], list(payloads[part])), waits=True)

    def _forget_emptied(self) -> None:
        for batch in self._pool.ledger.take_emptied():
            self._pool.batch_watchers.pop(batch.order, None)
            self._pool.closed.append((batch.session, batch.first))


def failure_payload(why: str, code: str) -> bytes:
    """Return the result object of a failure that the orchestrator itself states."""
    return msgspec.msgpack.encode({"success": False, "error": why, "code": code})


class _Failure(msgspec.Struct):
    error: object = None


def error_text(payload: bytes) -> str:
    """Return the ``error`` of a failed attempt's result, bounded, for its history."""
    try:
        error = msgspec.msgpack.decode(payload, type=_Failure).error
    except (msgspec.DecodeError, RecursionError):
        error = None
    return (error if isinstance(error, str) and error else "failed without a reason")[
        :MAX_REASON_CHARS
    ]
