"""What a journal holds at a start: all that the broker's brain must know to go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from d8mesh.core.broker.records import Batch, History, Totals, WorkerRecord


@dataclass(slots=True)
class Restored:
    """What the journal holds at a start: all that the brain must know to go on."""

    epoch: int
    secret: bytes
    next_assignment: int = 1
    totals: Totals = field(default_factory=Totals)
    kept_finished: int = 0
    workers: dict[str, WorkerRecord] = field(default_factory=dict)
    #: all that were ever named, those of forgotten tasks too
    sessions: int = 0
    #: session -> (first, count) of everything accepted and not pruned
    accepted: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    keys: dict[str, tuple[bytes, str, int, int]] = field(default_factory=dict)
    #: batches not known as closed, in order of acceptance, with the indexes that are finished
    batches: list[tuple[Batch, list[int]]] = field(default_factory=list)
    #: task id -> (attempt, worker id) of what was in somebody's hands
    in_flight: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: worker id -> seconds that earlier starts waited for it, of those that were not back since
    waited: dict[str, float] = field(default_factory=dict)
    #: task id -> (highest attempt, what went wrong)
    troubled: dict[str, tuple[int, History]] = field(default_factory=dict)
