"""How much is measured: the options of one run, as every scenario gets them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Args:
        rounds: how often each thing is measured, all things in turn.
        scale: 1.0 for the full run; a fraction for fewer tasks.
        with_peers: measure others too.
    """

    rounds: int = 5
    scale: float = 1.0
    with_peers: bool = False

    def tasks(self, count: int, *, least: int = 100) -> int:
        """Return how many tasks to take where the full run takes `count`."""
        return max(least, int(count * self.scale))

    def seconds(self, full_s: float, *, least_s: float = 0.5) -> float:
        """Return how long to measure where the full run takes `full_s`."""
        return max(least_s, full_s * self.scale)

    @property
    def is_full(self) -> bool:
        """True when nothing is cut short."""
        return self.scale >= 1.0
