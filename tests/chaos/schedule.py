"""What happens when: drawn from the seed alone, so that a run can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

#: Seconds between events on average; half a second at least.
MEAN_GAP_S: Final = 2.9
#: Weights of the kinds of event; those that need network namespaces, or a disk of their own,
#: stand apart.
WEIGHTS: Final = {
    "kill worker": 40,
    "fail worker": 10,
    "kill broker": 8,
    "fail broker": 7,
    "kill orchestrator": 5,
    "kill web": 3,
    "kill client": 4,
    "restart worker": 3,
    "pause worker": 10,
    "pause broker": 3,
    "clone worker": 3,
}
NETWORK_WEIGHTS: Final = {
    "partition": 8,
    "link down": 5,
    "one way": 3,
    "new address": 3,
}
DISK_WEIGHTS: Final = {"full disk": 2}
#: Where somebody approves who may join: keys of workers are revoked, and approved again.
MEMBER_WEIGHTS: Final = {"revoke worker": 8}
#: So many of the faults that last are short ones.
SHORT: Final = 0.65
#: Kinds that are over at once; the others last.
SUDDEN: Final = ("kill", "fail", "restart", "new")


@dataclass(frozen=True, slots=True)
class Event:
    """One fault: its time from the start, its target (taken modulo how many there are)."""

    at_s: float
    kind: str
    target: int
    #: how long a pause or a partition lasts; how long a killed process stays away
    lasts_s: float


def draw(
    *,
    seed: int,
    seconds: float,
    has_network: bool,
    has_disk: bool = False,
    has_members: bool = False,
) -> list[Event]:
    """Return the events of a run, in order.

    Each kind comes up once early on, in a shuffled round, so that a short run has them all.
    """
    dice = random.Random(seed)
    weights = {
        **WEIGHTS,
        **(NETWORK_WEIGHTS if has_network else {}),
        **(DISK_WEIGHTS if has_disk else {}),
        **(MEMBER_WEIGHTS if has_members else {}),
    }
    kinds = list(weights)
    first_round = dice.sample(kinds, len(kinds))
    events: list[Event] = []
    at_s = 2.0
    while at_s < seconds:
        kind = first_round.pop() if first_round else dice.choices(kinds, list(weights.values()))[0]
        events.append(Event(at_s, kind, dice.randrange(1000), _lasts_s(dice, kind)))
        at_s += 0.5 + dice.expovariate(1 / (MEAN_GAP_S - 0.5))
    return events


def _lasts_s(dice: random.Random, kind: str) -> float:
    if kind.startswith(SUDDEN):
        return dice.uniform(0.0, 3.0)
    if dice.random() < SHORT:
        return dice.uniform(0.5, 6.0)
    return dice.uniform(6.0, 14.0)  # shorter and longer than the lease of 10 s
