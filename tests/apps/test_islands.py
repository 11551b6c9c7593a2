"""Islands: who goes on, who are parents, who travels, and when it is enough."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.apps.fitness import FITNESS
from d8mesh.apps.islands import (
    EvolutionPlan,
    chance_of,
    chosen,
    elite_of,
    first_populations,
    is_stale,
    is_time_to_migrate,
    migrated,
    parents_of,
    ranked,
)
from d8mesh.apps.scores import GenomeScore, ScoreBook, failed_score, key_of


def plan(**more: Any) -> EvolutionPlan:
    return EvolutionPlan(problem=FITNESS["sphere"], **{"population": 4, "islands": 3} | more)


def book_of(costs: dict[int, GenomeScore]) -> ScoreBook:
    return ScoreBook({key_of({"n": n}): score for n, score in costs.items()})


def by_number(*numbers: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in numbers]


NUMBERS = book_of({n: GenomeScore(cost=float(n)) for n in range(100)})


def test_the_same_seed_makes_the_same_islands_and_each_island_another() -> None:
    one, two = first_populations(plan(seed=1)), first_populations(plan(seed=1))
    assert one == two
    assert len({key_of(genome) for each in one for genome in each}) == 12
    assert first_populations(plan(seed=2)) != one
    draws = {chance_of(plan(), i, g).random() for i in range(5) for g in range(5)}
    assert len(draws) == 25


def test_the_best_come_first_failed_ones_last_and_of_equals_the_cheaper() -> None:
    book = book_of({
        1: GenomeScore(cost=0.5, tokens=9),
        2: failed_score("no"),
        3: GenomeScore(cost=0.5, tokens=3),
        4: GenomeScore(cost=0.1, tokens=99),
    })  # fmt: skip
    assert ranked(by_number(1, 2, 3, 4), book) == by_number(4, 3, 1, 2)


def test_the_elite_is_a_tenth_each_once() -> None:
    assert elite_of(by_number(*range(30))) == by_number(0, 1, 2)
    assert elite_of(by_number(*[7] * 10, *range(10, 20))) == by_number(7, 10)
    assert elite_of(by_number(5, 6)) == by_number(5)


@given(st.integers(2, 50), st.integers(0, 30), st.integers())
def test_parents_are_of_the_population_and_the_better_ones_more_often(
    size: int, count: int, seed: int
) -> None:
    population = by_number(*range(size))
    pairs = parents_of(population, count, random.Random(seed))
    assert len(pairs) == count
    assert all(each in population for pair in pairs for each in pair)


def test_better_parents_are_chosen_more_often() -> None:
    chance = random.Random(1)
    found = [chosen(by_number(*range(10)), chance)["n"] for _ in range(3000)]
    assert found.count(0) > 2 * found.count(5) > 4 * found.count(9)


def test_each_island_sends_its_best_to_the_next_in_place_of_the_worst() -> None:
    before = [by_number(1, 50, 51), by_number(2, 60, 61), by_number(3, 70, 71)]
    after = migrated(before, NUMBERS)
    assert after == [by_number(1, 3, 50), by_number(1, 2, 60), by_number(2, 3, 70)]
    assert before[0] == by_number(1, 50, 51)


def test_a_guest_that_is_there_already_takes_nobodys_place() -> None:
    before = [by_number(1, 5), by_number(1, 9)]
    assert migrated(before, NUMBERS) == before


def test_one_island_has_nobody_to_exchange_with() -> None:
    assert migrated([by_number(1, 2)], NUMBERS) == [by_number(1, 2)]
    assert not any(is_time_to_migrate(plan(islands=1), g) for g in range(20))


def test_islands_exchange_every_so_many_generations() -> None:
    times = [g for g in range(10) if is_time_to_migrate(plan(migrate_every=3), g)]
    assert times == [3, 6, 9]


@pytest.mark.parametrize(
    ("costs", "patience", "is_enough"),
    [
        ([5, 4, 4, 4], 2, True),
        ([5, 4, 4, 4], 3, False),
        ([5, 5, 5], 0, False),
        ([5, 5], 2, False),
        ([5, 5, 4.9], 1, False),
    ],
)
def test_a_run_is_stale_after_so_many_generations_without_a_better_one(
    costs: list[float], patience: int, is_enough: bool
) -> None:
    assert is_stale(costs, patience) is is_enough
