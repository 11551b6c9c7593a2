"""Taking tasks in: all of a submit or nothing, each id once, within the bounds."""

from __future__ import annotations

from itertools import islice
from typing import Final

from msgspec import structs

from d8mesh.core.broker import placement
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import MAX_LISTENED, BrokerState, ClientState
from d8mesh.core.protocol.messages import MAX_WARNINGS, Accepted, Group, Refused, Submit
from d8mesh.core.protocol.task import Spec, Submitted
from d8mesh.errors import (
    D8Error,
    DiskLowError,
    DrainingError,
    FloodError,
    ForbiddenError,
    InvalidTaskError,
    KeyConflictError,
    QueueFullError,
    TaskRejectedError,
)

#: What a refused submitter is told to wait before trying again.
FULL_RETRY_S: Final = 1.0
DRAINING_RETRY_S: Final = 5.0
DISK_RETRY_S: Final = 5.0  # the disk is looked at every few seconds


class Admission:
    """Accepts submits, or says why not."""

    def __init__(self, state: BrokerState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def submit(self, client: ClientState, message: Submit) -> None:
        """Accept the tasks of `message`, or refuse them as a whole with the reason."""
        state = self._state
        count = size = 0
        serving, is_offered = state.registry.serving, True
        for group in message.groups:
            is_offered = is_offered and group.type in serving
            count += len(group.payloads)
            size += sum(map(len, group.payloads))
        try:
            repeat = self._repeat(client, message, count)
            if repeat is None:
                self.check_room(count, size, session=client.session)
                if message.is_listened and len(client.listened) + count > MAX_LISTENED:
                    raise FloodError(f"a client listens to {MAX_LISTENED} tasks at the same time")
        except (TaskRejectedError, ForbiddenError, FloodError) as error:
            state.metrics.reject(error.code)
            retry_s = _RETRY_S.get(type(error), 0.0)
            self._state.send(client.peer, Refused(message.seq, error.code, str(error), retry_s))
            return
        if repeat is None:
            self._accept(client, message, count)
        accepted = repeat or Accepted(message.seq, message.session, message.first)
        if not is_offered:
            accepted = structs.replace(accepted, warnings=self._warnings(message))
        self._state.send(client.peer, accepted, waits=True)

    def _warnings(self, message: Submit) -> list[str]:
        """Return what people should know of tasks that are accepted: nobody may run them."""
        registry = self._state.registry
        kinds = dict.fromkeys(group.type for group in message.groups)
        unknown = (kind for kind in kinds if not placement.is_offered(kind, registry))
        return [placement.why_nobody(kind, registry) for kind in islice(unknown, MAX_WARNINGS)]

    def take(
        self,
        session: str,
        first: int,
        spec: Spec,
        payloads: list[bytes],
        *,
        key: tuple[str, bytes, int] = ("", b"", 0),
    ) -> int:
        """Record one batch and let it wait for its turn; return its place in the order."""
        state = self._state
        self._state.record(Submitted(session, first, spec, payloads, state.at, *key))
        batch = state.task_table.batch_at(session, first)
        assert batch is not None  # it has just been taken in
        self._scheduler.enqueue(batch)
        return batch.order

    def _accept(self, client: ClientState, message: Submit, count: int) -> None:
        first = message.first
        key = (message.key, message.digest, count)
        for group in message.groups:
            spec = self._spec(group)
            order = self.take(message.session, first, spec, group.payloads, key=key)
            if message.is_watched:
                self._state.batch_watchers[order] = client.session
            if message.is_listened:
                self._listen(client, first, len(group.payloads))
            first += len(group.payloads)
            key = ("", b"", 0)

    def _listen(self, client: ClientState, first: int, count: int) -> None:
        """Let the submitter hear those of these tasks that are not finished."""
        for n in range(first, first + count):
            task_id = f"{client.session}-{n}"
            if self._state.task_table.state_of(task_id) is not None:
                self._state.listen(client, task_id)

    def _spec(self, group: Group) -> Spec:
        state = self._state
        return Spec(
            type=group.type,
            priority=group.priority,
            max_attempts=group.max_attempts or state.policy.max_attempts,
            model=group.model,
            deadline_at=None if group.deadline_s is None else state.at + group.deadline_s,
            run_at=group.run_at,  # if that is past, the tick knows: it has the clock anew
            is_fenced=group.is_fenced,
            source=group.source,
        )

    def _repeat(self, client: ClientState, message: Submit, count: int) -> Accepted | None:
        """Return the answer to a submit that was accepted before, or None if it is new."""
        if message.session != client.session:
            raise ForbiddenError("a client submits under its own session only")
        accepted = self._state.task_table.accepted.get(message.session)
        overlap = 0 if accepted is None else accepted.overlap(message.first, count)
        if overlap == count:
            if message.is_listened:  # maybe to another start of ours
                self._listen(client, message.first, count)
            return Accepted(message.seq, message.session, message.first)
        if overlap:
            raise InvalidTaskError(
                f"{overlap} of the {count} ids from {message.session}-{message.first} were used "
                "before: an id names one task for ever"
            )
        known = self._state.task_table.keys.get(message.key) if message.key else None
        if known is None:
            return None
        digest, session, first, _ = known
        if digest != message.digest:
            raise KeyConflictError
        return Accepted(message.seq, session, first, is_repeat=True)

    def check_room(self, count: int, size: int, *, session: str) -> None:
        """Refuse `count` tasks of `size` bytes if they may not come in now.

        Raises:
            DrainingError, DiskLowError, QueueFullError: as they say.
            TaskRejectedError: the store has no row ids for another session.
        """
        state = self._state
        if state.is_draining:
            raise DrainingError
        if state.is_disk_low:
            raise DiskLowError
        task_table, policy = state.task_table, state.policy
        if (
            session not in task_table.accepted
            and len(task_table.accepted) + task_table.forgotten_sessions >= task_table.max_sessions
        ):
            raise TaskRejectedError(
                f"the journal has named {task_table.max_sessions} clients, and no more fit: start "
                "the orchestrator with a new data folder"
            )
        if task_table.queued + count > policy.queue_size:
            raise QueueFullError(
                f"{task_table.queued} tasks wait and {count} more would exceed the limit of "
                f"{policy.queue_size}: wait for some to finish, or raise TASK_QUEUE_SIZE"
            )
        if task_table.unfinished_bytes + size > policy.queue_bytes:
            raise QueueFullError(
                f"{task_table.unfinished_bytes} bytes wait and {size} more would exceed the limit "
                f"of {policy.queue_bytes}: wait for tasks to finish, or raise D8_QUEUE_BYTES"
            )


_RETRY_S: Final[dict[type[D8Error], float]] = {
    FloodError: FULL_RETRY_S,
    QueueFullError: FULL_RETRY_S,
    DrainingError: DRAINING_RETRY_S,
    DiskLowError: DISK_RETRY_S,
}
