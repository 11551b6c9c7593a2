"""What accounts allow: set by hand, told by the service, or else as its free tier is known to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from d8mesh.setting_forms import CLOUD_BOUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may be asked of one model with one account; 0: no bound is known."""

    minute_requests: int = 0
    minute_tokens: int = 0
    day_requests: int = 0
    day_tokens: int = 0


#: The free tiers, where neither D8_CLOUD_LIMITS nor the service says otherwise: provider, names of
#: models, what they get; the first that fits. Cautious: too low costs time, too high a refusal.
#: Source for Groq: its page of rate limits, mid-2026; for Gemini, which publishes none any more:
#: users' reports of early 2026. Both may have changed.
FREE_TIERS: Final[Sequence[tuple[str, str, Bounds]]] = (
    ("groq", r"gpt-oss", Bounds(minute_requests=30, day_requests=1000, minute_tokens=8000,
                                day_tokens=200_000)),
    ("groq", r"qwen", Bounds(minute_requests=60, day_requests=1000, minute_tokens=6000,
                             day_tokens=500_000)),
    ("groq", r"compound", Bounds(minute_requests=30, day_requests=250, minute_tokens=70_000)),
    ("groq", r"", Bounds(minute_requests=30, day_requests=1000, minute_tokens=6000)),
    ("gemini", r"flash-lite", Bounds(minute_requests=15, day_requests=1000,
                                     minute_tokens=250_000)),
    ("gemini", r"flash", Bounds(minute_requests=10, day_requests=250, minute_tokens=250_000)),
    ("gemini", r"", Bounds(minute_requests=5, day_requests=100, minute_tokens=250_000)),
)  # fmt: skip


def set_bounds(
    limits: Sequence[tuple[str, str, int]], provider: str, model: str
) -> Mapping[str, int]:
    """Return what D8_CLOUD_LIMITS says of a model; its own row goes before the provider's."""
    found: dict[str, int] = {}
    for who in (provider, f"{provider}/{model}"):
        found |= {name: value for whose, name, value in limits if whose == who}
    return found


def bounds_of(
    provider: str, model: str, *, given: Mapping[str, int], learnt: Mapping[str, int]
) -> Bounds:
    """Return what holds: what is `given` by hand, else what was `learnt`, else the defaults."""
    rows = (each for who, names, each in FREE_TIERS if who == provider and re.search(names, model))
    default = next(rows, Bounds())
    known = {name: getattr(default, name) for name in CLOUD_BOUNDS} | dict(learnt) | dict(given)
    return Bounds(**known)
