"""New genomes keep the keys and the types of the old ones."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.genetic import (
    MAX_INTEGER,
    MAX_NESTING,
    MIN_INTEGER,
    evolution_crossover,
    evolution_mutation,
)
from tests.task_context import Context

#: Without a bound of time for an example: others use the machine too.
AT_EASE = settings(deadline=None, max_examples=60)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(MIN_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
KEYS = st.text(max_size=6)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
GENOMES = st.dictionaries(KEYS, VALUES, max_size=5)
RATES = st.floats(0, 1)
SEEDS = st.integers() | st.text(max_size=8)


def crossed(one: Any, two: Any, **more: Any) -> Any:
    return evolution_crossover({"genome1": one, "genome2": two, **more}, Context())["genome"]


def mutated(genome: Any, rate: Any, **more: Any) -> Any:
    return evolution_mutation({"genome": genome, "mutation_rate": rate, **more}, Context())[
        "genome"
    ]


def form_of(value: Any) -> Any:
    """Return `value` with each leaf replaced by its type."""
    if isinstance(value, dict):
        return {key: form_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [form_of(inner) for inner in value]
    return (type(value), len(value)) if isinstance(value, str) else type(value)


def leaves_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves_of(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves_of(inner)]
    return [value]


@AT_EASE
@given(genome=GENOMES, rate=RATES, seed=SEEDS)
def test_mutation_keeps_keys_order_and_types(genome: Any, rate: float, seed: int | str) -> None:
    child = mutated(genome, rate, seed=seed)
    assert form_of(child) == form_of(genome)
    assert list(child) == list(genome)


@AT_EASE
@given(genome=GENOMES)
def test_a_rate_of_zero_changes_nothing(genome: Any) -> None:
    assert mutated(genome, 0) == genome
    assert mutated(genome, 0.0) == genome


@AT_EASE
@given(genome=GENOMES, other=GENOMES, rate=RATES)
def test_children_stay_within_jsons_model(genome: Any, other: Any, rate: float) -> None:
    for child in (mutated(genome, rate), crossed(genome, other)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(child)) == child
        for leaf in leaves_of(child):
            if isinstance(leaf, float):
                assert math.isfinite(leaf)
            elif isinstance(leaf, int):
                assert MIN_INTEGER <= leaf <= MAX_INTEGER


@AT_EASE
@given(value=st.integers(MIN_INTEGER, 2**63 - 1))
def test_a_signed_integer_stays_one(value: int) -> None:
    assert MIN_INTEGER <= mutated({"x": value}, 1)["x"] <= 2**63 - 1


@AT_EASE
@given(genome=st.dictionaries(KEYS, st.integers(-1000, 1000) | st.booleans(), min_size=1))
def test_a_rate_of_one_changes_every_number_and_boolean(genome: Any) -> None:
    child = mutated(genome, 1)
    assert all(child[key] != value for key, value in genome.items())


@AT_EASE
@given(genome=GENOMES)
def test_a_genome_crossed_with_itself_is_itself(genome: Any) -> None:
    assert crossed(genome, genome) == genome


@AT_EASE
@given(one=GENOMES, two=GENOMES)
def test_crossover_keeps_the_keys_of_both_parents(one: Any, two: Any) -> None:
    child = crossed(one, two)
    assert list(child) == list(one) + [key for key in two if key not in one]


@AT_EASE
@given(data=st.data(), one=GENOMES)
def test_crossing_genomes_of_one_form_keeps_the_form(data: st.DataObject, one: Any) -> None:
    two = mutated(one, 1)
    child = crossed(one, two)
    assert form_of(child) == form_of(one)
    both = zip(leaves_of(child), leaves_of(one), leaves_of(two), strict=True)
    assert all(leaf in (first, second) for leaf, first, second in both)


@AT_EASE
@given(one=GENOMES, two=GENOMES, rate=RATES, seed=SEEDS)
def test_a_seed_gives_the_same_genome_each_time(
    one: Any, two: Any, rate: float, seed: int | str
) -> None:
    assert crossed(one, two, seed=seed) == crossed(one, two, seed=seed)
    assert mutated(one, rate, seed=seed) == mutated(one, rate, seed=seed)


@AT_EASE
@given(seed=SEEDS)
def test_both_parents_give_something(seed: int | str) -> None:
    one, two = {str(i): 0 for i in range(64)}, {str(i): 1 for i in range(64)}
    assert set(crossed(one, two, seed=seed).values()) == {0, 1}


def test_parents_are_not_changed_and_not_shared() -> None:
    one: dict[str, Any] = {"deep": {"list": [1, 2]}}
    child = crossed(one, {"other": 1})
    child["deep"]["list"].append(3)
    assert one == {"deep": {"list": [1, 2]}}


def test_the_genome_is_also_the_output() -> None:
    result = evolution_mutation({"genome": {"x": 1}, "mutation_rate": 0}, Context())
    assert result == {"success": True, "genome": {"x": 1}, "output": {"x": 1}}


def test_an_overflowing_float_stays_finite() -> None:
    largest = 1.7976931348623157e308
    assert all(math.isfinite(mutated({"x": largest}, 1, seed=i)["x"]) for i in range(50))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"genome2": {}}, "Missing field: genome1"),
        ({"genome1": {}}, "Missing field: genome2"),
        ({"genome1": [], "genome2": {}}, "genome1: expected an object, not a list"),
        ({"genome1": {}, "genome2": None}, "genome2: expected an object, not null"),
        ({"genome1": {}, "genome2": {"a": {"b": math.nan}}}, "genome2.a.b: expected a finite"),
        ({"genome1": {"a": [2**64]}, "genome2": {}}, r"genome1.a\[0\]: expected an integer of 64"),
        ({"genome1": {1: 2}, "genome2": {}}, "genome1: keys must be texts"),
        ({"genome1": {"a": b"x"}, "genome2": {}}, "genome1.a: bytes is not a JSON value"),
        ({"genome1": {}, "genome2": {}, "seed": 1.5}, "seed: expected"),
    ],
)
def test_a_wrong_crossover_names_the_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        evolution_crossover(data, Context())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"mutation_rate": 0.1}, "Missing field: genome"),
        ({"genome": {}}, "Missing field: mutation_rate"),
        ({"genome": "x", "mutation_rate": 0.1}, "genome: expected an object, not a text"),
        ({"genome": {}, "mutation_rate": "0.1"}, "mutation_rate: expected a number from 0 to 1"),
        ({"genome": {}, "mutation_rate": True}, "mutation_rate: expected a number from 0 to 1"),
        ({"genome": {}, "mutation_rate": 1.01}, "mutation_rate: .* not 1.01"),
        ({"genome": {}, "mutation_rate": -1}, "mutation_rate: .* not -1"),
        ({"genome": {}, "mutation_rate": math.nan}, "mutation_rate: .* not nan"),
    ],
)
def test_a_wrong_mutation_names_the_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        evolution_mutation(data, Context())


def test_a_genome_that_is_too_deep_is_refused() -> None:
    genome: dict[str, Any] = {}
    for _ in range(MAX_NESTING + 1):
        genome = {"in": genome}
    with pytest.raises(InvalidTaskError, match="nested deeper"):
        mutated(genome, 0)
