"""What a stand-in has seen."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

#: Requests, cancellations, connections and prompts that are remembered; counts go on.
REMEMBERED: Final = 20_000


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A client that left: in the phase ``queue``, ``prompt`` or ``output``, after so many pieces.

    `at`: monotonic seconds.
    """

    model: str
    phase: str
    pieces: int
    at: float


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection that has ended.

    Attributes:
        path: of its last request; "": it asked nothing.
        opened, at: monotonic seconds, of the whole system's clock.
        is_answered: no request of it was under way.
        by_client: it was the client who ended it.
    """

    path: str
    opened: float
    at: float
    is_answered: bool
    by_client: bool


@dataclass(slots=True)
class Counters:
    """What was seen. `running`: requests that hold a slot; `open`: those that wait too."""

    requests: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    open: int = 0
    open_max: int = 0
    tokens: int = 0
    cancelled: deque[Cancelled] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    #: connections that have ended, but those that ended because the stand-in did
    closed: deque[Closed] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    #: of each text or vector asked for: (model, prompt)
    prompts: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    #: each request as (path, headers in lower case, body)
    bodies: deque[tuple[str, dict[str, str], Any]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED)
    )
