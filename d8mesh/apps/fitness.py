"""The built-in problems of Evolution: a first genome, and the cost of any genome.

A cost is 0 when a genome is perfect, and larger the worse it is.
"""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.scores import WORST, Genome, GenomeScore

#: Numbers of a genome: enough that chance alone does not solve it.
DIMENSIONS: Final = 5
BITS: Final = 40
TARGET: Final = "many machines one mind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be solved."""

    name: str
    summary: str
    #: makes a genome by chance
    new: Callable[[random.Random], Genome]
    #: may overflow: use `cost`
    raw_cost: Callable[[Genome], float]

    @property
    def identity(self) -> str:
        """Its name: there is nothing else to tell two of them apart."""
        return self.name

    @property
    def keeps_scores(self) -> bool:
        """False: to find them again is quicker than to read them."""
        return False

    def repaired(self, genome: Genome) -> Genome:
        """Return `genome`: a problem has no bounds."""
        return genome

    def expressed(self, genome: Genome) -> Genome:
        """Return `genome`, which stands for itself."""
        return genome

    def ready(self, genome: Genome) -> Genome:
        """Return `genome`."""
        return genome

    def try_all(
        self,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
    ) -> None:
        """Find the costs of `genomes`, here: they take microseconds."""
        del mesh
        for index, genome in enumerate(genomes):
            on_score(index, GenomeScore(cost=self.cost(genome)))

    def cost(self, genome: Genome) -> float:
        """Return how bad `genome` is: from 0 to `WORST`."""
        try:
            found = self.raw_cost(genome)
        except (OverflowError, ValueError):
            return WORST
        return found if 0 <= found <= WORST else WORST  # WORST also for NaN


def _numbers(low: float, high: float) -> Callable[[random.Random], Genome]:
    def new(chance: random.Random) -> Genome:
        return {"x": [chance.uniform(low, high) for _ in range(DIMENSIONS)]}

    return new


def _rastrigin(genome: Genome) -> float:
    waves = (x * x - 10 * math.cos(2 * math.pi * x) + 10 for x in genome["x"])
    return max(float(sum(waves)), 0.0)  # rounding may leave it just below


def _rosenbrock(genome: Genome) -> float:
    xs = genome["x"]
    pairs = itertools.pairwise(xs)
    return float(sum(100 * (b - a * a) * (b - a * a) + (1 - a) * (1 - a) for a, b in pairs))


def _new_text(chance: random.Random) -> Genome:
    letters = string.ascii_lowercase + " "
    return {"letters": [chance.choice(letters) for _ in TARGET]}


def _wrong_letters(genome: Genome) -> float:
    pairs = zip(genome["letters"], TARGET, strict=True)
    return float(sum(letter != wanted for letter, wanted in pairs))


_PROBLEMS: Final = (
    Problem(
        name="sphere",
        summary="the sum of squares of five numbers: one smooth valley",
        new=_numbers(-5.12, 5.12),
        raw_cost=lambda genome: float(sum(x * x for x in genome["x"])),
    ),
    Problem(
        name="rastrigin",
        summary="a valley full of holes, hundreds of them wrong",
        new=_numbers(-5.12, 5.12),
        raw_cost=_rastrigin,
    ),
    Problem(
        name="rosenbrock",
        summary="a long bent valley with a flat floor",
        new=_numbers(-2.048, 2.048),
        raw_cost=_rosenbrock,
    ),
    Problem(
        name="onemax",
        summary=f"switch on all of {BITS} bits",
        new=lambda chance: {"bits": [chance.random() < 0.5 for _ in range(BITS)]},
        raw_cost=lambda genome: float(sum(not bit for bit in genome["bits"])),
    ),
    Problem(
        name="text",
        summary=f"find the text {TARGET!r}",
        new=_new_text,
        raw_cost=_wrong_letters,
    ),
)

#: All problems by name.
FITNESS: Final = {problem.name: problem for problem in _PROBLEMS}


def has_form_of(value: Any, model: Any) -> bool:
    """Tell whether `value` has the keys, lengths and types of `model`: members may err.

    A whole number may stand for a float: some languages write 1.0 as 1.
    """
    if isinstance(model, dict):
        is_alike = isinstance(value, dict) and value.keys() == model.keys()
        return is_alike and all(has_form_of(value[key], model[key]) for key in model)
    if isinstance(model, list):
        is_alike = isinstance(value, list) and len(value) == len(model)
        return is_alike and all(map(has_form_of, value, model))
    if isinstance(model, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return type(value) is type(model)
