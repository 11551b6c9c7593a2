"""Genes stay within their bounds, are bred by the mesh's operators, and become what an agent is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.apps.fitness import has_form_of
from d8mesh.apps.genes import (
    DEFAULT_FORM,
    ChoiceGene,
    GeneValue,
    GenomeForm,
    NumberGene,
    PartsGene,
    agent_data,
    read_form,
)
from d8mesh.errors import ConfigError
from d8mesh.handlers.chat_fields import agent_request
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from tests.task_context import Context


@given(
    low=st.integers(-1000, 1000),
    width=st.floats(0.01, 1000),
    part=st.floats(0.001, 1),
    bred=st.floats(-5, 5),
)
def test_a_number_is_within_its_bounds_and_on_a_step(
    low: int, width: float, part: float, bred: float
) -> None:
    gene = NumberGene(low=low, high=low + width, step=width * part)
    value = gene.expressed(gene.repaired(bred))
    assert isinstance(value, float)
    assert low <= value <= low + width + 1e-6
    steps = (value - low) / gene.step
    assert abs(steps - round(steps)) < 1e-3


@given(st.floats(-5, 5))
def test_what_is_repaired_stays_as_it_is(bred: float) -> None:
    for gene in (NumberGene(low=16, high=128, step=16), NumberGene(low=0.5, high=1, step=0.07)):
        once = gene.repaired(bred)
        assert gene.repaired(once) == once


def test_a_whole_number_stays_whole() -> None:
    gene = NumberGene(low=16, high=128, step=16)
    found = {gene.expressed(gene.repaired(i / 100)) for i in range(101)}
    assert found == set(range(16, 129, 16))
    assert all(isinstance(value, int) for value in found)


def test_behind_the_last_choice_comes_the_first() -> None:
    gene = ChoiceGene(of=["a", "b", "c"])
    assert [gene.expressed(gene.repaired(i)) for i in (-1, 0, 2, 3)] == ["c", "a", "c", "a"]


def test_parts_are_in_or_out() -> None:
    gene = PartsGene(of=["a", "b", "c"])
    assert gene.expressed(gene.repaired([True, False, True])) == "a c"
    assert gene.repaired("broken") == [False] * 3


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_every_child_by_the_operators_of_the_mesh_is_an_agent_that_can_be_asked(
    seed: int, rate: float
) -> None:
    chance = random.Random(seed)
    one, two = DEFAULT_FORM.new(chance), DEFAULT_FORM.new(chance)
    crossed: Any = evolution_crossover({"genome1": one, "genome2": two, "seed": seed}, Context())
    data = {"genome": crossed["genome"], "mutation_rate": rate, "seed": seed}
    mutated: Any = evolution_mutation(data, Context())
    assert has_form_of(mutated["genome"], one)
    child = DEFAULT_FORM.repaired(mutated["genome"])
    agent_request(agent_data(DEFAULT_FORM.expressed(child), "Why?"))  # or it raises


def test_the_system_prompt_is_of_all_genes_that_are_named_so() -> None:
    agent: dict[str, GeneValue] = {
        "system.role": "Be brief.",
        "system.style": "",
        "system.end": "Be kind.",
        "prompt": "Q: {question}",
        "temperature": 0.5,
    }
    assert agent_data(agent, "why {x}?") == {
        "messages": [
            {"role": "system", "content": "Be brief. Be kind."},
            {"role": "user", "content": "Q: why {x}?"},
        ],
        "temperature": 0.5,
    }


def form_in(folder: Path, text: str, suffix: str = "json") -> GenomeForm:
    file = folder / f"genome.{suffix}"
    file.write_text(text, "utf-8")
    return read_form(file)


def test_a_genome_is_read_from_json_and_yaml(tmp_path: Path) -> None:
    form = form_in(tmp_path, '{"genes": {"model": {"kind": "choice", "of": ["a:1b", "b:2b"]}}}')
    assert form.expressed({"model": 1}) == {"model": "b:2b"}
    yaml = "genes:\n  temperature: {kind: number, low: 0, high: 1, step: 0.5}\n"
    assert form_in(tmp_path, yaml, "yaml").expressed({"temperature": 0.5}) == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("genes", "problem"),
    [
        ('"temprature": {"kind": "number", "low": 0, "high": 1}', "did you mean temperature"),
        ('"temperature": {"kind": "number", "low": 1, "high": 1}', "expected low < high"),
        ('"temperature": {"kind": "number", "low": 0, "high": 9}', "temperature: .*0 to 2"),
        ('"max_tokens": {"kind": "number", "low": 1.5, "high": 9}', "max_tokens"),
        ('"temperature": {"kind": "number", "low": 0, "high": 1, "step": 3}', "step 3 is larger"),
        ('"prompt": {"kind": "choice", "of": ["no place"]}', "{question} in each"),
        ('"model": {"kind": "choice", "of": []}', "length >= 1"),
        ('"model": {"kind": "other"}', "other"),
        ("", "length >= 1"),
    ],
)
def test_genes_that_cannot_be_are_refused_with_the_reason(
    tmp_path: Path, genes: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"--genome .*{problem}"):
        form_in(tmp_path, f'{{"genes": {{{genes}}}}}')
