"""Children of parents: crossover and then mutation, each a batch of tasks of the mesh.

Each task carries a seed, so that the same parents have the same children whoever works.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from d8mesh.apps.fitness import has_form_of
from d8mesh.apps.islands import (
    EvolutionPlan,
    Population,
    chance_of,
    elite_of,
    parents_of,
)
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.scores import Genome

#: Seeds fit every language's integers.
MAX_SEED: Final = 2**31


class Breeder:
    """Makes the next generation of all islands at once."""

    def __init__(self, plan: EvolutionPlan, mesh: MeshBatches) -> None:
        self._plan, self._mesh = plan, mesh
        #: tasks that failed, or gave a genome of another form: the parent went on instead
        self.barren_tasks = 0

    def next_generation(
        self, populations: Sequence[Population], generation: int
    ) -> list[Population]:
        """Return the islands' next populations: their elites, and children of their parents.

        Args:
            populations: ranked.
            generation: the number of the one that is made.
        """
        elites = [elite_of(each) for each in populations]
        chances = [chance_of(self._plan, i, generation) for i in range(len(populations))]
        pairs: list[tuple[Genome, Genome, random.Random]] = []
        for population, elite, chance in zip(populations, elites, chances, strict=True):
            wanted = self._plan.population - len(elite)
            pairs += [(*pair, chance) for pair in parents_of(population, wanted, chance)]
        children = iter(self._children(pairs))
        return [
            [*elite, *(next(children) for _ in range(self._plan.population - len(elite)))]
            for elite in elites
        ]

    def _children(self, pairs: Sequence[tuple[Genome, Genome, random.Random]]) -> Population:
        crossed = self._genomes(
            "evolution_crossover",
            [
                {"genome1": one, "genome2": two, "seed": chance.randrange(MAX_SEED)}
                for one, two, chance in pairs
            ],
            instead=[one for one, _, _ in pairs],
        )
        rate = self._plan.mutation_rate
        mutated = self._genomes(
            "evolution_mutation",
            [
                {"genome": genome, "mutation_rate": rate, "seed": chance.randrange(MAX_SEED)}
                for genome, (_, _, chance) in zip(crossed, pairs, strict=True)
            ],
            instead=crossed,
        )
        return [self._plan.problem.repaired(genome) for genome in mutated]

    def _genomes(
        self, kind: str, datas: Sequence[Mapping[str, Any]], *, instead: Sequence[Genome]
    ) -> Population:
        """Return the new genome of each task, or the one of `instead` if it gave none."""
        genomes = list(instead)
        for outcome in self._mesh.ends(kind, datas):
            genome = (outcome.result or {}).get("genome")
            if genome is not None and has_form_of(genome, genomes[outcome.index]):
                genomes[outcome.index] = dict(genome)
            else:
                self.barren_tasks += 1
        return genomes
