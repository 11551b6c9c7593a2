"""How tasks end: record the outcome once, free the worker, tell who awaits it.

Every way to a final state goes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import Batch
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.json_model import error_as_text
from d8mesh.core.protocol.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    SOFT_FRAME_BYTES,
    Outcomes,
    Stop,
)
from d8mesh.core.protocol.task import Cancelled, Completed, Failed

#: Ids, states and payloads of ended tasks that one client awaits.
_Told: TypeAlias = tuple[list[str], list[int], list[bytes]]
#: The longest reason kept in a history; the recorded result holds the whole.
MAX_REASON_CHARS: Final = 500
#: As much of a handler's traceback as a history keeps; workers cut it to the same.
MAX_TRACEBACK_CHARS: Final = 8000


class TaskOutcomes:
    """Completes, fails and cancels tasks of a pool."""

    def __init__(self, broker: BrokerState) -> None:
        self._state = broker
        #: session -> what has ended since it was last told
        self._told: dict[str, _Told] = {}

    def complete(
        self, worker_id: str, ids: list[str], ns: list[int], payloads: list[bytes]
    ) -> None:
        """Record successes of `worker_id`; every id is unfinished and stands once."""
        self._settle(ids, COMPLETED_STATE, payloads, worker_id)
        self._state.record(Completed(worker_id, ids, ns, payloads, self._state.at))
        self._forget_emptied()

    def fail(self, worker_id: str, ids: list[str], payloads: list[bytes], *, why: str) -> None:
        """Record final failures; `worker_id` is empty when no worker is to blame."""
        ns = self._attempts(ids)
        self._settle(ids, FAILED_STATE, payloads, worker_id)
        self._state.record(Failed(worker_id, ids, ns, payloads, self._state.at, why))
        self._forget_emptied()

    def fail_for(self, ids: list[str], *, code: str, why: str, worker_id: str = "") -> None:
        """Record final failures that no worker reported, with a result made here.

        Args:
            worker_id: who had them last and is to blame; empty: nobody.
        """
        payload = failure_payload(why, code, worker_id)
        self.fail(worker_id, ids, [payload] * len(ids), why=why)

    def cancel(self, ids: list[str]) -> None:
        """Record the cancellation of unfinished tasks and stop those that run."""
        payloads = [failure_payload("cancelled", "task.cancelled")] * len(ids)
        ns = self._attempts(ids)
        self._settle(ids, CANCELLED_STATE, payloads, "")
        self._state.record(Cancelled(ids, ns, payloads, self._state.at))
        self._forget_emptied()

    def _attempts(self, ids: list[str]) -> list[int]:
        tasks = self._state.task_table.tasks
        return [tasks[task_id].n if task_id in tasks else 0 for task_id in ids]

    def _settle(self, ids: list[str], state: int, payloads: Sequence[bytes], by: str) -> None:
        """Note who is to be told, and take the tasks out of the hands that hold them."""
        broker = self._state
        tasks, worker_states = broker.task_table.tasks, broker.registry.worker_states
        watching, told = broker.batch_watchers, self._told
        stops: dict[str, list[str]] = {}
        batch: Batch | None = None
        mine: _Told | None = None
        is_singly_awaited = bool(broker.task_watchers or broker.listeners)
        for index, task_id in enumerate(ids):  # a strict zip costs more than the rest of a pass
            payload, task = payloads[index], tasks.get(task_id)
            if task is not None:
                home = task.batch
                worker_state = worker_states.get(task.worker_id) if task.worker_id else None
                was_held = (
                    worker_state is not None
                    and worker_state.outstanding.pop(task_id, None) is not None
                )
                if was_held and task.worker_id != by:
                    stops.setdefault(task.worker_id, []).append(task_id)
            else:
                found = broker.task_table.find(task_id)
                assert found is not None  # callers checked that the task is unfinished
                home = found[0]
            if home is not batch:
                batch = home
                watcher = watching.get(home.order)
                mine = None if watcher is None else told.setdefault(watcher, ([], [], []))
            if mine is not None:
                mine[0].append(task_id)
                mine[1].append(state)
                mine[2].append(payload)
            if is_singly_awaited:
                self._tell_single(task_id, state, payload, watching.get(home.order))
        if stops:
            self._stop(stops, "cancelled" if state == CANCELLED_STATE else "no longer wanted")

    def _tell_single(self, task_id: str, state: int, payload: bytes, watcher: str | None) -> None:
        broker = self._state
        for session in broker.task_watchers.pop(task_id, ()):
            broker.clients[session].watched.discard(task_id)
            if session != watcher:
                mine = self._told.setdefault(session, ([], [], []))
                mine[0].append(task_id)
                mine[1].append(state)
                mine[2].append(payload)
        if listening := broker.listeners.pop(task_id, None):
            broker.say_last(task_id, listening)
            for session in listening:
                broker.clients[session].listened.discard(task_id)

    def _stop(self, stops: dict[str, list[str]], reason: str) -> None:
        for worker_id, ids in stops.items():
            worker_state = self._state.registry.worker_states[worker_id]
            if worker_state.is_live and worker_state.peer.routing_id and worker_state.boot_id:
                self._state.tell(worker_state, Stop(ids, reason))
            self._state.registry.refresh(worker_state)

    def tell_all(self) -> None:
        """Tell everybody what has ended: once for all that came in together."""
        if self._told:
            told, self._told = self._told, {}
            for session, (ids, states, payloads) in told.items():
                self.tell(session, ids, bytes(states), payloads)

    def tell(self, session: str, ids: list[str], states: bytes, payloads: Sequence[bytes]) -> None:
        """Send outcomes to a client, cut to fitting frames, after their commit."""
        client = self._state.clients.get(session)
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
        self._state.send(peer, Outcomes(ids[part], states[part], list(payloads[part])), waits=True)

    def _forget_emptied(self) -> None:
        for batch in self._state.task_table.take_emptied():
            self._state.batch_watchers.pop(batch.order, None)
            self._state.closed.append((batch.session, batch.first))


def failure_payload(why: str, code: str, worker_id: str = "") -> bytes:
    """Return the result object of a failure that the orchestrator itself states."""
    body: dict[str, object] = {"success": False, "error": why, "code": code}
    if worker_id:
        body["worker_id"] = worker_id
    return msgspec.msgpack.encode(body)


class Failure(msgspec.Struct, frozen=True):
    """What the orchestrator reads of a failed attempt's result; all of it may be missing."""

    error: object = None
    #: False: to try again would not help
    retry: object = None
    #: the wished pause before the next attempt, seconds
    retry_after_s: object = None
    traceback: object = None

    @classmethod
    def of(cls, payload: bytes) -> Failure:
        """Return what a result says; of one that is no object, nothing."""
        try:
            return msgspec.msgpack.decode(payload, type=cls)
        except (msgspec.DecodeError, RecursionError):
            return cls()

    @property
    def text(self) -> str:
        """The error, bounded, for the task's history."""
        return (error_as_text(self.error) or "failed without a reason")[:MAX_REASON_CHARS]

    @property
    def is_final(self) -> bool:
        """True when it asks for no other attempt."""
        return self.retry is False

    @property
    def pause_s(self) -> float | None:
        """The wished pause, None if none is wished for; what is no number of seconds is none."""
        wished = self.retry_after_s
        if isinstance(wished, bool) or not isinstance(wished, (int, float)) or not wished >= 0:
            return None
        return float(wished)

    @property
    def traceback_text(self) -> str:
        """The traceback, bounded."""
        return self.traceback[:MAX_TRACEBACK_CHARS] if isinstance(self.traceback, str) else ""

    def recorded(self, payload: bytes) -> bytes:
        """Return the result without its wish for another attempt: this was the last."""
        if self.retry_after_s is None:
            return payload
        body = msgspec.msgpack.decode(payload, type=dict[str, msgspec.Raw])
        del body["retry_after_s"]
        return msgspec.msgpack.encode(body)
