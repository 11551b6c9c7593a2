"""Every built-in problem starts imperfect, can be solved, and survives any genome."""

from __future__ import annotations

import random
from typing import Any

import pytest

from d8mesh.apps.fitness import BITS, DIMENSIONS, FITNESS, TARGET, has_form_of
from d8mesh.apps.scores import WORST

PERFECT: dict[str, dict[str, Any]] = {
    "sphere": {"x": [0.0] * DIMENSIONS},
    "rastrigin": {"x": [0.0] * DIMENSIONS},
    "rosenbrock": {"x": [1.0] * DIMENSIONS},
    "onemax": {"bits": [True] * BITS},
    "text": {"letters": list(TARGET)},
}


@pytest.mark.parametrize("name", FITNESS)
def test_a_perfect_genome_costs_nothing_and_chance_does_not_find_it(name: str) -> None:
    problem = FITNESS[name]
    assert problem.cost(PERFECT[name]) == 0
    first = [problem.new(random.Random(seed)) for seed in range(20)]
    assert all(problem.cost(genome) > 0 for genome in first)
    assert all(has_form_of(genome, PERFECT[name]) for genome in first)


@pytest.mark.parametrize("name", ["sphere", "rastrigin", "rosenbrock"])
@pytest.mark.parametrize("x", [1e308, -1e308, 2**64, 1e200])
def test_a_cost_is_always_a_number_that_json_can_hold(name: str, x: float) -> None:
    assert 0 <= FITNESS[name].cost({"x": [x] * DIMENSIONS}) <= WORST


@pytest.mark.parametrize(
    ("value", "is_alike"),
    [
        ({"x": [1.0, 2.5], "n": 1, "b": True, "s": "t"}, True),
        ({"x": [1, 2.5], "n": 1, "b": True, "s": "t"}, True),
        ({"x": [1.0], "n": 1, "b": True, "s": "t"}, False),
        ({"x": [1.0, float("nan")], "n": 1, "b": True, "s": "t"}, False),
        ({"x": [1.0, True], "n": 1, "b": True, "s": "t"}, False),
        ({"x": [1.0, 2.0], "n": 1.5, "b": True, "s": "t"}, False),
        ({"x": [1.0, 2.0], "n": 1, "b": 1, "s": "t"}, False),
        ({"x": [1.0, 2.0], "n": 1, "b": True}, False),
        (None, False),
        ([], False),
    ],
)
def test_a_genome_of_another_form_is_noticed(value: Any, is_alike: bool) -> None:
    model = {"x": [0.0, 0.0], "n": 0, "b": False, "s": ""}
    assert has_form_of(value, model) is is_alike
