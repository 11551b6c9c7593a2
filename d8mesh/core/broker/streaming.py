"""Partial output on its way from workers to who listens; nothing of it is stored.

The last of each running task's output is kept: for late listeners, and for one whose
connection was full for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import TaskRecord
from d8mesh.core.broker.state import BrokerState, CatchUp
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, MAX_STREAM_BYTES, Chunks, Stream, Streams

#: Chunks of one running task that late listeners still get.
TAIL_BYTES: Final = 64 * 1024
#: Who could not be sent something is sent what is kept, so much later.
CATCH_UP_S: Final = 0.05


class Streaming:
    """Passes the partial output of tasks on."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        #: task id -> attempt, number of the first piece kept, the pieces, their bytes
        self._tails: dict[str, tuple[int, int, list[bytes], int]] = {}
        #: (session, task id) of who missed something that may be kept still
        self._behind: set[tuple[str, str]] = set()
        #: session -> what it is sent together, at the end of this wake-up of the loop
        self._due: dict[str, list[Stream]] = {}

    def take(self, message: Chunks) -> None:
        """Pass output on: what came together of a task goes on together."""
        tasks = self._state.task_table.tasks
        runs: dict[str, Stream] = {}
        sizes: dict[str, int] = {}
        for task_id, token, seq, payload in zip(
            message.ids, message.tokens, message.seqs, message.payloads, strict=True
        ):
            task = tasks.get(task_id)
            if task is None or task.attempt.token != token:
                continue
            self._keep_tail(task, seq, payload)
            run, size = runs.get(task_id), sizes.get(task_id, 0) + len(payload)
            is_next = run is not None and run.first_seq + len(run.payloads) == seq
            if run is not None and is_next and size <= MAX_STREAM_BYTES:
                run.payloads.append(payload)
                sizes[task_id] = size
                continue
            if run is not None:
                self._send(run)
            sizes[task_id] = len(payload)
            runs[task_id] = Stream(task_id, task.n, seq, [payload])
        for run in runs.values():
            self._send(run)

    def tail(self, task: TaskRecord) -> Stream:
        """Return what is kept of the task's partial output: an empty one begins an attempt."""
        attempt, first_seq, payloads, _ = self._tails.get(task.id, (task.n, 0, [], 0))
        return Stream(task.id, attempt, first_seq, list(payloads))

    def undelivered(self, peer: Peer, stream: Stream) -> None:
        """A client reads too slowly: it gets what is kept as soon as it can be sent."""
        client = self._state.clients_by_routing_id.get(peer.routing_id)
        if client is not None and stream.id in client.listened:
            if not self._behind:
                self._state.after(CATCH_UP_S, CatchUp())
            self._behind.add((client.session, stream.id))

    def catch_up(self) -> None:
        """Send what is kept to who could not be sent something."""
        state, behind, self._behind = self._state, self._behind, set()
        for session, task_id in sorted(behind):
            task, client = state.task_table.tasks.get(task_id), state.clients.get(session)
            if task is not None and client is not None and task_id in client.listened:
                self._state.send(client.peer, self.tail(task))

    def say_last(self, task: TaskRecord, sessions: set[str]) -> None:
        """A task is finished; who is behind has a last chance, before the outcome."""
        for session in sorted(sessions):
            if (session, task.id) in self._behind:
                self._behind.discard((session, task.id))
                self._state.send(self._state.clients[session].peer, self.tail(task))
        self._tails.pop(task.id, None)

    def broken_off(self, task: TaskRecord) -> None:
        """The task's attempt has ended without an outcome: the next one begins anew.

        Who heard some of it is told now, for that may begin much later.
        """
        tail = self._tails.get(task.id)
        if tail is not None and tail[0] == task.n:
            self._tails[task.id] = (task.n + 1, 0, [], 0)
            self._send(Stream(task.id, task.n + 1, 0, []))

    def forget(self, ids: Iterable[str]) -> None:
        """Drop what is kept of the output of these tasks."""
        for task_id in ids:
            self._tails.pop(task_id, None)

    def forget_tails(self) -> None:
        """Drop the tails of tasks that are finished."""
        for task_id in [t for t in self._tails if t not in self._state.task_table.tasks]:
            del self._tails[task_id]

    def send_due(self) -> None:
        """Send what is sent together: a frame for each client costs far less than one a task."""
        if not self._due:
            return
        due, self._due = self._due, {}
        for session, streams in due.items():
            client = self._state.clients.get(session)
            if client is None:
                continue
            for part in _parts_of(streams):
                self._state.send(client.peer, part[0] if len(part) == 1 else Streams(part))

    def _send(self, run: Stream) -> None:
        state = self._state
        for session in state.listeners.get(run.id, ()):
            if self._behind and (session, run.id) in self._behind:
                continue
            if state.clients[session].takes_streams:
                self._due.setdefault(session, []).append(run)
            else:
                state.send(state.clients[session].peer, run)

    def _keep_tail(self, task: TaskRecord, seq: int, payload: bytes) -> None:
        attempt, first, kept, size = self._tails.get(task.id, (task.n, seq, [], 0))
        if attempt != task.n:
            self._send(Stream(task.id, task.n, 0, []))  # a new attempt begins
            attempt, first, kept, size = task.n, seq, [], 0
        if seq != first + len(kept):  # the worker could not keep what was between
            first, kept, size = seq, [], 0
        kept.append(payload)
        size += len(payload)
        while (size > TAIL_BYTES or len(kept) > MAX_BATCH_TASKS) and len(kept) > 1:
            size -= len(kept.pop(0))
            first += 1
        self._tails[task.id] = (attempt, first, kept, size)


def _parts_of(streams: list[Stream]) -> Iterator[list[Stream]]:
    """Yield them in parts that may wait for a slow reader."""
    part: list[Stream] = []
    size = 0
    for stream in streams:
        more = sum(map(len, stream.payloads))
        if part and (size + more > MAX_STREAM_BYTES or len(part) == MAX_BATCH_TASKS):
            yield part
            part, size = [], 0
        part.append(stream)
        size += more
    yield part
