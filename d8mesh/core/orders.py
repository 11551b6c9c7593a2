"""What a worker's brain asks of its node. The node does it at once and in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from d8mesh.core.messages import ToBroker, WorkGroup


class Kept(NamedTuple):
    """One result as the outbox keeps it; it belongs to the orchestrator `broker_id`."""

    broker_id: str
    task_id: str
    token: bytes
    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """Send `message` over `link`."""

    link: int
    message: ToBroker


@dataclass(frozen=True, slots=True)
class Start:
    """Run the attempts of `group` as soon as slots are free."""

    broker_id: str
    group: WorkGroup


@dataclass(frozen=True, slots=True)
class Abort:
    """These are no longer wanted: forget the waiting, cancel the running ones."""

    broker_id: str
    task_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Take back up to `count` attempts that have not started, the newest first.

    The node answers with `WorkerSession.given_back`.
    """

    broker_id: str
    count: int


@dataclass(frozen=True, slots=True)
class Heed:
    """Somebody listens to the partial output of these tasks, or nobody does any more."""

    broker_id: str
    task_ids: Sequence[str]
    is_on: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """Put these results on the disk, in one commit."""

    results: Sequence[Kept]


@dataclass(frozen=True, slots=True)
class Forget:
    """The orchestrator has these results; they need not be kept any longer."""

    broker_id: str
    task_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Close:
    """Let `link` go; dial that orchestrator again, but not before `pause_s`."""

    link: int
    why: str
    pause_s: float = 0.0


Order: TypeAlias = Tell | Start | Abort | GiveBack | Heed | Keep | Forget | Close
