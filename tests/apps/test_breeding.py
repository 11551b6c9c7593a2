"""Children are made by tasks of the mesh, and are what the seed says whoever works."""

from __future__ import annotations

from d8mesh.apps.breeding import Breeder
from d8mesh.apps.fitness import FITNESS
from d8mesh.apps.genes import DEFAULT_FORM
from d8mesh.apps.islands import EvolutionPlan, Population, first_populations
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.own_fitness import OwnFitness
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from tests.in_process import InProcess

HANDLERS: dict[str, Handler] = {
    "evolution_crossover": evolution_crossover,
    "evolution_mutation": evolution_mutation,
}
PLAN = EvolutionPlan(problem=FITNESS["text"], population=5, islands=2, seed=9)


def bred(plan: EvolutionPlan, handlers: dict[str, Handler], threads: int = 2) -> list[Population]:
    with InProcess(handlers, threads=threads) as mesh:
        return Breeder(plan, MeshBatches(mesh)).next_generation(first_populations(plan), 1)


def test_the_children_are_the_same_whoever_works() -> None:
    assert bred(PLAN, HANDLERS, threads=1) == bred(PLAN, HANDLERS, threads=7)


def test_the_elite_goes_on_and_the_rest_are_children() -> None:
    first, second = first_populations(PLAN), bred(PLAN, HANDLERS)
    for before, after in zip(first, second, strict=True):
        assert len(after) == PLAN.population
        assert after[0] == before[0]
        assert after[1:] != before[1:]


def test_a_child_that_is_out_of_bounds_is_put_back() -> None:
    def wild(data: Data, context: TaskContext) -> object:
        genome = dict(data["genome"])
        return {"genome": genome | {"temperature": 99.0, "prompt": -7}}

    problem = OwnFitness(name="x:y", form=DEFAULT_FORM, function=len, takes_client=False)
    plan = EvolutionPlan(problem=problem, population=4)
    (population,) = bred(plan, HANDLERS | {"evolution_mutation": wild})
    for genome in population[1:]:
        agent = problem.expressed(genome)
        assert agent["temperature"] == 1.2
        assert agent["prompt"] in DEFAULT_FORM.genes["prompt"].of  # type: ignore[union-attr]
