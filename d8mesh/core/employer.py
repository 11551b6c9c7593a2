"""An orchestrator as a worker knows it: what is held of it and what it is owed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from d8mesh.core.messages import MAX_BATCH_TASKS, SOFT_FRAME_BYTES

#: Results messages on their way at once: what finishes meanwhile becomes one larger batch,
#: which fits one commit of the broker. Two, so that one travels while one is committed.
MAX_IN_FLIGHT: Final = 2
#: Bytes of the envelope of one result in a frame: id, token, lengths.
ENVELOPE_BYTES: Final = 64


class Result(NamedTuple):
    """One finished attempt that its orchestrator has not acknowledged yet."""

    task_id: str
    token: bytes
    kind: int
    payload: bytes


@dataclass(slots=True, eq=False)
class Flight:
    """One `Results` message on its way."""

    sent: float
    results: list[Result]


@dataclass(slots=True, eq=False)
class Employer:
    """One orchestrator; it outlives its connections.

    `held` are the attempts that wait or run, task id to token. `ready` are results that
    are to be sent, `flights` those sent and not acknowledged; `kept` the ids of those
    that are on the disk.
    """

    broker_id: str
    link: int | None = None
    is_open: bool = False
    #: the name it knows this worker by, if the worker's own was taken there
    alias: str = ""
    epoch: int = 0
    heartbeat_s: float = 3.0
    lease_s: float = 10.0
    last_heard: float = 0.0
    next_beat: float = 0.0
    work_seq: int = 0
    said_window: int = 0
    next_seq: int = 1
    held: dict[str, bytes] = field(default_factory=dict)
    ready: list[Result] = field(default_factory=list)
    flights: dict[int, Flight] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def owed(self) -> Iterable[Result]:
        """Return the results that it has not acknowledged."""
        for flight in self.flights.values():
            yield from flight.results
        yield from self.ready

    def claims(self) -> tuple[list[str], list[bytes]]:
        """Return ids and tokens of all it may count on, at most as many as a message holds."""
        claims = dict(self.held)
        for result in self.owed():
            if len(claims) >= MAX_BATCH_TASKS:
                break
            claims.setdefault(result.task_id, result.token)
        return list(claims), list(claims.values())

    def take_ready(self) -> list[Result]:
        """Return the results for the next message and count them as no longer ready."""
        ready = self.ready
        total = sum([len(result.payload) for result in ready]) + ENVELOPE_BYTES * len(ready)
        if total <= SOFT_FRAME_BYTES and len(ready) <= MAX_BATCH_TASKS:
            self.ready = []
            return ready
        size, count = 0, 0
        for result in ready[:MAX_BATCH_TASKS]:
            size += len(result.payload) + ENVELOPE_BYTES
            if count and size > SOFT_FRAME_BYTES:
                break
            count += 1
        self.ready = ready[count:]
        return ready[:count]

    def recall_flights(self) -> None:
        """Count what is on its way as still to be sent: its session is over."""
        again = [result for flight in self.flights.values() for result in flight.results]
        self.flights.clear()
        self.ready[:0] = again

    def disown(self, task_ids: Iterable[str]) -> tuple[list[str], list[Result]]:
        """Drop attempts and results that hold no longer.

        Returns:
            Ids of waiting or running attempts, and the results let go.
        """
        gone = set(task_ids)
        aborted = [task_id for task_id in gone if self.held.pop(task_id, None) is not None]
        dropped = [result for result in self.owed() if result.task_id in gone]
        if dropped:
            self.ready = [result for result in self.ready if result.task_id not in gone]
            for flight in self.flights.values():
                flight.results = [r for r in flight.results if r.task_id not in gone]
        return aborted, dropped
