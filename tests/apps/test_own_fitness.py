"""A person's own function gives the cost, may ask the mesh, and may fail without harm."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.apps.genes import DEFAULT_FORM
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.own_fitness import OwnFitness, load_fitness
from d8mesh.apps.scores import WORST, GenomeScore
from d8mesh.errors import ConfigError, WaitTimeoutError
from d8mesh.handlers.echo import echo
from tests.in_process import InProcess

PATIENCE_S = 30


def scored(function: Any, *, takes_client: bool = False, count: int = 3) -> list[GenomeScore]:
    contest = OwnFitness(
        name="my:cost", form=DEFAULT_FORM, function=function, takes_client=takes_client
    )
    chance, found = random.Random(1), dict[int, GenomeScore]()
    with InProcess({"echo": echo}) as mesh:
        genomes = [DEFAULT_FORM.new(chance) for _ in range(count)]
        contest.try_all(genomes, MeshBatches(mesh), found.__setitem__)
    return [found[index] for index in range(count)]


def test_a_function_gets_what_a_genome_stands_for() -> None:
    seen: list[Any] = []

    def cost(agent: Any) -> float:
        seen.append(agent)
        return float(agent["temperature"])

    scores = scored(cost)
    assert {score.cost for score in scores} == {agent["temperature"] for agent in seen}
    assert all(set(agent) == set(DEFAULT_FORM.genes) for agent in seen)


def test_a_function_may_ask_the_mesh() -> None:
    def cost(agent: Any, client: Any) -> float:
        (task,) = client.submit_many("echo", [{"n": 3}])
        return float(task.result(PATIENCE_S)["output"]["n"])

    assert {score.cost for score in scored(cost, takes_client=True)} == {3.0}


def test_genomes_are_tried_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE_S)

    def cost(agent: Any) -> int:
        return meeting.wait() * 0

    assert [score.is_failed for score in scored(cost)] == [False] * 3


@pytest.mark.parametrize("found", [None, "1", True, float("nan")])
def test_what_is_no_number_is_a_failure(found: Any) -> None:
    (score,) = scored(lambda agent: found, count=1)
    assert score.is_failed
    assert "expected the cost, a number" in score.error


def test_a_function_that_raises_is_a_failure_with_its_words() -> None:
    (score,) = scored(lambda agent: 1 / 0, count=1)
    assert (score.is_failed, score.error) == (True, "ZeroDivisionError: division by zero")


def test_a_cost_is_kept_within_what_json_holds() -> None:
    assert scored(lambda agent: float("inf"), count=1)[0].cost == WORST
    assert scored(lambda agent: -3, count=1)[0].cost == 0


def test_a_function_that_does_not_return_holds_nobody_longer_than_the_time() -> None:
    held = threading.Event()
    contest = OwnFitness(
        name="my:cost", form=DEFAULT_FORM, function=lambda agent: held.wait(), takes_client=False
    )
    genome = DEFAULT_FORM.new(random.Random(1))
    with InProcess({}) as mesh:
        soon = MeshBatches(mesh, until=time.monotonic() + 0.2)
        with pytest.raises(WaitTimeoutError):
            contest.try_all([genome], soon, lambda index, score: None)
    held.set()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("own_cost"):
            del sys.modules[name]


def test_a_function_is_loaded_from_a_file_or_a_module(folder: Path) -> None:
    text = "def one(genome): return 1\ndef two(genome, client): return 2\nsome = 3\n"
    (folder / "own_cost.py").write_text(text, "utf-8")
    for name in ("./own_cost.py:one", "own_cost:one"):
        assert load_fitness(name, DEFAULT_FORM).takes_client is False
    assert load_fitness("own_cost:two", DEFAULT_FORM).takes_client is True
    for wrong in ("own_cost:three", "own_cost:some"):
        with pytest.raises(ConfigError, match="there is no function"):
            load_fitness(wrong, DEFAULT_FORM)
    with pytest.raises(ConfigError, match=r"--fitness .*there is no file"):
        load_fitness("./own_cost_other.py:one", DEFAULT_FORM)


def test_a_function_of_something_else_is_refused(folder: Path) -> None:
    (folder / "own_cost_bad.py").write_text("def f(a, b, c): return 1\n", "utf-8")
    with pytest.raises(ConfigError, match="expected a function of a genome"):
        load_fitness("own_cost_bad:f", DEFAULT_FORM)
