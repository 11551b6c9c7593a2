"""Any costs can be plotted, the islands' too, without anything from elsewhere."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from d8mesh.apps.evolution_file import EvolutionHistory
from d8mesh.apps.evolution_plot import inline_plot, plot
from d8mesh.apps.fitness import FITNESS
from d8mesh.apps.islands import EvolutionPlan
from d8mesh.apps.scores import WORST

#: Costs that plots stumble over: none, equal, almost equal, far apart.
COSTS = (
    [1e-300, WORST],
    [0.0, 0.0],
    [5.0],
    [WORST, WORST],
    [1.0, 1.0000000000000002],
    [0.0, WORST],
)


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("islands", [1, 3, 40])
def test_any_costs_can_be_plotted_without_anything_from_elsewhere(
    costs: list[float], islands: int
) -> None:
    history = EvolutionHistory(
        best_costs=costs, mean_costs=costs, island_costs=[[each] * islands for each in costs]
    )
    plan = EvolutionPlan(problem=FITNESS["sphere"], islands=islands)
    picture = plot(plan, history)
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "src=" not in picture
    assert "@import" not in picture
    assert ("island 2" in picture) is (islands > 1)
    part = inline_plot(plan, history)
    assert part.startswith("<svg")
    assert "<script" not in part
    assert ElementTree.fromstring(part).tag.endswith("svg")


def test_plotting_leaves_the_import_machinery_as_it_was() -> None:
    plot(
        EvolutionPlan(problem=FITNESS["sphere"]),
        EvolutionHistory(best_costs=[1.0], mean_costs=[2.0], island_costs=[[1.0]]),
    )
    assert all(hasattr(finder, "find_spec") for finder in sys.meta_path)
