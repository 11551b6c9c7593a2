"""Islands: populations that evolve apart and hand on their best, in a ring.

All chance of a generation comes from the run's seed, the island and the generation: a run that
goes on from its file is the run that it would have been.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from d8mesh.apps.scores import Contest, Genome, ScoreBook, key_of

#: One of so many is kept as it is: the best is never lost.
ELITE_SHARE: Final = 10
#: Parents are the best of so many taken by chance.
TOURNAMENT: Final = 3
#: A cost below this is as good as none.
SOLVED: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionPlan:
    """What to evolve, how, and when to stop."""

    problem: Contest
    #: genomes of each island
    population: int = 24
    generations: int = 10
    mutation_rate: float = 0.2
    seed: int = 0
    islands: int = 1
    #: generations from one exchange to the next
    migrate_every: int = 5
    #: generations without a better one, at most; 0 is any number
    patience: int = 0


Population = list[Genome]


def chance_of(plan: EvolutionPlan, island: int, generation: int) -> random.Random:
    """Return the chance of one generation of an island."""
    return random.Random(f"{plan.seed}/{island}/{generation}")


def first_populations(plan: EvolutionPlan) -> list[Population]:
    """Return the islands as chance makes them."""
    found = []
    for island in range(plan.islands):
        chance = chance_of(plan, island, 0)
        found.append(
            [plan.problem.repaired(plan.problem.new(chance)) for _ in range(plan.population)]
        )
    return found


def ranked(population: Sequence[Genome], book: ScoreBook) -> Population:
    """Return `population`, all of which was tried, best first."""
    return sorted(population, key=lambda genome: book.of(genome).rank)


def elite_of(population: Sequence[Genome]) -> Population:
    """Return those of a ranked population that go on as they are, each once."""
    size = max(1, len(population) // ELITE_SHARE)
    unlike = {key_of(genome): genome for genome in population}
    return list(unlike.values())[:size]


def chosen(population: Sequence[Genome], chance: random.Random) -> Genome:
    """Return a parent from a ranked population: the better, the likelier."""
    return population[min(chance.randrange(len(population)) for _ in range(TOURNAMENT))]


def parents_of(
    population: Sequence[Genome], count: int, chance: random.Random
) -> list[tuple[Genome, Genome]]:
    """Return so many pairs from a ranked population."""
    return [(chosen(population, chance), chosen(population, chance)) for _ in range(count)]


def migrated(populations: Sequence[Population], book: ScoreBook) -> list[Population]:
    """Return ranked islands after each has sent its best to the next, in place of the worst."""
    if len(populations) < 2:
        return [list(each) for each in populations]
    found = []
    for island, population in enumerate(populations):
        guest = populations[island - 1][0]
        keys = set(map(key_of, population))
        stays = list(population) if key_of(guest) in keys else [*population[:-1], guest]
        found.append(ranked(stays, book))
    return found


def is_time_to_migrate(plan: EvolutionPlan, generation: int) -> bool:
    """Tell whether islands exchange before they breed the generation after `generation`."""
    return plan.islands > 1 and generation > 0 and generation % plan.migrate_every == 0


def is_stale(best_costs: Sequence[float], patience: int) -> bool:
    """Tell whether the last `patience` generations brought nothing better; 0 is never."""
    if not patience or len(best_costs) <= patience:
        return False
    return min(best_costs[-patience:]) >= min(best_costs[:-patience])
