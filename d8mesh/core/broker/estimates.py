"""How long a request takes at a model of a service, and how long a line of them.

By what is measured; where nothing is, by what others with the same model do, or by its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Final, NamedTuple

from d8mesh.core.broker.service_states import (
    ModelState,
)
from d8mesh.core.broker.standings import Obstacle
from d8mesh.core.protocol.wish import Wish

#: What a request takes where nothing is known of its kind.
PROMPT_TOKENS: Final = 200
OUTPUT_TOKENS: Final = 200
#: Of a machine that nothing is known of: bytes read from memory for each token of an answer, which
#: is all of the model's, tokens of a prompt for one of an answer, and bytes loaded from its disk.
MEMORY_BYTES_PER_S: Final = 50e9
PROMPT_SPEEDUP: Final = 10.0
LOAD_BYTES_PER_S: Final = 500e6
MODEL_BYTES: Final = 5e9
#: Slots looked at one by one to tell when a line is through; more are taken as a flow.
EXACT_SLOTS: Final = 64


@dataclass(slots=True, eq=False)
class Weighed:
    """A candidate for a task, and what stands against it (None: nothing)."""

    model: ModelState
    obstacle: Obstacle | None
    #: seconds from its beginning to the end of the request, load and all
    estimate_s: float = 0.0
    #: the same without loading
    run_s: float = 0.0
    room: int = 0
    #: the same before what the pace taught, and whether by measured speeds
    raw_s: float = 0.0
    is_measured: bool = False
    until_s: float | None = None
    why: str = ""

    @property
    def load_s(self) -> float:
        """How long its model takes to load first; 0: it is loaded."""
        return self.estimate_s - self.run_s


class Means(NamedTuple):
    """What is known of a model over all services: means, 0 where nothing is."""

    prompt_tokens: float
    output_tokens: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    pace: float
    load_s: float

    @classmethod
    def of(cls, models: Sequence[ModelState]) -> Means:
        """Return the means over models of one name."""
        infos = [model.info for model in models]
        requests = sum(info.requests for info in infos) or 1
        return cls(
            sum(info.prompt_tokens for info in infos) / requests,
            sum(info.output_tokens for info in infos) / requests,
            _mean(info.prompt_tokens_per_s for info in infos),
            _mean(info.output_tokens_per_s for info in infos),
            _mean(model.pace for model in models if not model.is_pace_measured),
            _mean(info.load_s for info in infos),
        )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value > 0.0]
    return sum(known) / len(known) if known else 0.0


class Estimate(NamedTuple):
    """How long a request takes at a model: to load, and to run, as it is thought and as it was."""

    load_s: float
    run_s: float
    raw_s: float
    is_measured: bool


def estimate(model: ModelState, wish: Wish, means: Means) -> Estimate:
    """Return how long a request of a wish takes at a model once it begins."""
    info = model.info
    prompt = wish.prompt_tokens or means.prompt_tokens or PROMPT_TOKENS
    output = means.output_tokens or OUTPUT_TOKENS
    if wish.output_tokens:
        output = min(output, wish.output_tokens)
    is_measured = info.output_tokens_per_s > 0.0 or info.prompt_tokens_per_s > 0.0
    by_size = MEMORY_BYTES_PER_S / (info.size_bytes or MODEL_BYTES)
    output_speed = info.output_tokens_per_s or means.output_tokens_per_s or by_size
    prompt_speed = (
        info.prompt_tokens_per_s or means.prompt_tokens_per_s or output_speed * PROMPT_SPEEDUP
    )
    raw_s = prompt / prompt_speed + output / output_speed
    if model.pace and model.is_pace_measured is is_measured:
        pace = model.pace
    else:
        pace = 1.0 if is_measured else means.pace or 1.0
    if model.is_loaded:
        load_s = 0.0
    else:
        load_s = info.load_s or means.load_s or (info.size_bytes or MODEL_BYTES) / LOAD_BYTES_PER_S
    return Estimate(load_s, raw_s * pace, raw_s, is_measured)


def line_done_s(others: Sequence[Weighed], waiting: int, now: float) -> float:
    """Return in how many seconds others would have done all that waits.

    An attempt that takes longer than expected is taken to need as long again as it has.
    """
    slots = [slot for each in others for slot in _slots(each, now)]
    if not slots:
        return float("inf")
    fastest = min(each.run_s for each in others)
    if len(slots) <= EXACT_SLOTS and waiting <= 4 * len(slots):
        heapify(slots)
        done = 0.0
        for _ in range(waiting):
            free, run_s = slots[0]
            done = max(done, free + run_s)
            heapreplace(slots, (free + run_s, run_s))
        return done
    slots.sort()
    rate = passed = 0.0
    begun = waiting - 1.0
    for free, run_s in slots:  # as a flow, from one slot's being free to the next one's
        if rate and (free - passed) * rate >= begun:
            break
        begun -= (free - passed) * rate
        rate, passed = rate + 1.0 / run_s, free
    return passed + begun / rate + fastest


def _slots(each: Weighed, now: float) -> list[tuple[float, float]]:
    """Return of each slot when it is free, and how long a request takes there."""
    model, run_s = each.model, max(each.run_s, 1e-3)
    bound = max(1, model.bound(now))
    if not model.is_loaded:  # what waits for the load is in its slots then, too
        left_s = model.loaded_by - now if model.loaded_by else each.load_s
        left_s = left_s if left_s > 0.0 else each.load_s - left_s
        slots = max(1, model.info.slots)
        return [(left_s + run_s * (n < model.in_flight), run_s) for n in range(slots)]
    found: list[tuple[float, float]] = []
    for flight in model.service.flights.values():
        if flight.model == model.name and len(found) < bound:
            taken, expected = now - flight.since, flight.expected_s or run_s
            found.append((expected - taken if taken < expected else taken, run_s))
    return found + [(0.0, run_s)] * (bound - len(found))
