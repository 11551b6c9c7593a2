"""What a stand-in has seen."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

#: Requests, cancellations and prompts that are remembered; counts go on.
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
    #: of each text or vector asked for: (model, prompt)
    prompts: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    #: each request as (path, headers in lower case, body)
    bodies: deque[tuple[str, dict[str, str], Any]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED)
    )
