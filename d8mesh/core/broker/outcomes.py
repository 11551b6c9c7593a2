"""How tasks end: record the outcome once, then free the worker and tell who awaits it.

Every way to a final state goes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.service_states import NO_TOKENS, AnswerTokens
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.streaming import Streaming
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
    """Completes, fails and cancels tasks."""

    def __init__(self, state: BrokerState, streaming: Streaming) -> None:
        self._state = state
        self._streaming = streaming
        #: session -> what has ended since it was last told
        self._told: dict[str, _Told] = {}

    def complete(
        self,
        worker_id: str,
        ids: list[str],
        ns: list[int],
        payloads: list[bytes],
        tasks: Sequence[TaskRecord | None] | None = None,
    ) -> None:
        """Record successes of `worker_id`; every id is unfinished and stands once.

        Args:
            tasks: what the task table has under these ids, if that is known.
        """
        fact = Completed(worker_id, ids, ns, payloads, self._state.at)
        self._end(fact, COMPLETED_STATE, worker_id, tasks)

    def fail(self, worker_id: str, ids: list[str], payloads: list[bytes], *, why: str) -> None:
        """Record final failures; `worker_id` is empty when no worker is to blame."""
        ns = self._attempts(ids)
        fact = Failed(worker_id, ids, ns, payloads, self._state.at, why)
        self._end(fact, FAILED_STATE, worker_id)

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
        fact = Cancelled(ids, self._attempts(ids), payloads, self._state.at)
        self._end(fact, CANCELLED_STATE, "")

    def broken_off(self, task: TaskRecord) -> None:
        """An attempt has ended without an outcome; see `Streaming.broken_off`."""
        self._streaming.broken_off(task)

    def _attempts(self, ids: list[str]) -> list[int]:
        tasks = self._state.task_table.tasks
        return [tasks[task_id].n if task_id in tasks else 0 for task_id in ids]

    def _end(
        self,
        fact: Completed | Failed | Cancelled,
        code: int,
        by: str,
        tasks: Sequence[TaskRecord | None] | None = None,
    ) -> None:
        """Let tasks end; then take them out of the hands that hold them, and note whom to tell."""
        state, ids, payloads = self._state, fact.ids, fact.payloads
        fresh: dict[str, Batch] = {}
        if tasks is None:
            tasks = list(map(state.task_table.tasks.get, ids))
            fresh = self._fresh(ids, tasks)
        self._state.record(fact)
        workers = state.registry.workers
        if state.services.flights:
            self._land(ids, payloads, is_success=code == COMPLETED_STATE)
        stops: dict[str, list[str]] = {}
        #: where in the columns each run of tasks of one batch begins
        runs: list[tuple[int, Batch]] = []
        batch: Batch | None = None
        for index, task in enumerate(tasks):  # the path of every task
            if task is None:
                home = fresh[ids[index]]
            else:
                home = task.batch
                worker = workers.get(task.worker_id) if task.worker_id else None
                was_held = worker is not None and worker.outstanding.pop(task.id, None) is not None
                if was_held and task.worker_id != by:
                    stops.setdefault(task.worker_id, []).append(task.id)
            if home is not batch:
                batch = home
                runs.append((index, home))
        if len(runs) == 1:
            self._note(runs[0][1], code, ids, payloads, tasks)
        else:
            ends = [start for start, _ in runs[1:]]
            for (start, home), end in zip(runs, [*ends, len(ids)], strict=True):
                self._note(home, code, ids[start:end], payloads[start:end], tasks[start:end])
        if stops:
            self._stop(stops, "cancelled" if code == CANCELLED_STATE else "no longer wanted")
        for emptied in state.task_table.take_emptied():
            state.batch_watchers.pop(emptied.order, None)
            state.closed.append((emptied.session, emptied.first))

    def _land(self, ids: list[str], payloads: list[bytes], *, is_success: bool) -> None:
        """Tell the services of attempts that ended there."""
        services, now = self._state.services, self._state.now
        for task_id, payload in zip(ids, payloads, strict=True):
            if task_id in services.flights:
                tokens = _tokens_of(payload) if is_success else NO_TOKENS
                services.end(task_id, now, is_success=is_success or None, tokens=tokens)

    def _note(
        self,
        batch: Batch,
        code: int,
        ids: list[str],
        payloads: list[bytes],
        tasks: Sequence[TaskRecord | None],
    ) -> None:
        """Note whom to tell of tasks of one batch that have ended, and how long they ran.

        What one message told of a batch is taken as one assignment.
        """
        state = self._state
        watcher = state.batch_watchers.get(batch.order)
        if watcher is not None:
            self._tell_later(watcher, code, ids, payloads)
        if state.task_watchers or state.listeners:
            for task_id, payload, task in zip(ids, payloads, tasks, strict=True):
                self._tell_single(task_id, code, payload, watcher)
                self._end_stream(task_id, task)
        first = tasks[0]
        if code == COMPLETED_STATE and first is not None and first.attempt.since:
            kind = batch.spec.type
            runs = state.metrics.run_s.get(kind) or state.metrics.runs_of(kind)
            runs.fresh.append((state.now - first.attempt.since, len(ids)))

    def _fresh(self, ids: list[str], tasks: Sequence[TaskRecord | None]) -> dict[str, Batch]:
        """Return the batches of those that are no objects."""
        find = self._state.task_table.find
        places = {i: find(i) for i, task in zip(ids, tasks, strict=True) if task is None}
        return {task_id: place[0] for task_id, place in places.items() if place is not None}

    def _tell_single(self, task_id: str, code: int, payload: bytes, watcher: str | None) -> None:
        state = self._state
        for session in state.task_watchers.pop(task_id, ()):
            state.clients[session].watched.discard(task_id)
            if session != watcher:
                self._tell_later(session, code, [task_id], [payload])

    def _tell_later(self, session: str, code: int, ids: list[str], payloads: list[bytes]) -> None:
        mine = self._told.setdefault(session, ([], [], []))
        mine[0].extend(ids)
        mine[1].extend([code] * len(ids))
        mine[2].extend(payloads)

    def _end_stream(self, task_id: str, task: TaskRecord | None) -> None:
        if listening := self._state.listeners.pop(task_id, None):
            if task is not None:
                self._streaming.say_last(task, listening)
            for session in listening:
                self._state.clients[session].listened.discard(task_id)

    def _stop(self, stops: dict[str, list[str]], reason: str) -> None:
        for worker_id, ids in stops.items():
            worker = self._state.registry.workers[worker_id]
            if worker.is_live and worker.peer.routing_id and worker.boot_id:
                self._state.tell(worker, Stop(ids, reason))
            self._state.registry.refresh(worker)

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
        outcomes = Outcomes(ids[part], states[part], list(payloads[part]))
        self._state.send(peer, outcomes, waits=True)


class _AnswerRead(msgspec.Struct, frozen=True):
    """What the orchestrator reads of the result of a language model."""

    usage: AnswerTokens = NO_TOKENS


_read_answer: Final = msgspec.msgpack.Decoder(_AnswerRead).decode


def _tokens_of(payload: bytes) -> AnswerTokens:
    try:
        return _read_answer(payload).usage
    except (ValueError, RecursionError):  # of another handler
        return NO_TOKENS


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
        except (ValueError, RecursionError):
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
