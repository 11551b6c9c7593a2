"""A population gets better, the same way for the same seed, and the run is saved."""

from __future__ import annotations

import argparse
import json
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from d8mesh import words
from d8mesh.apps import evolution
from d8mesh.apps.evolution import EvolutionHistory, EvolutionPlan, evolve, plot, run, run_with
from d8mesh.apps.fitness import FITNESS, WORST
from d8mesh.config import Config
from d8mesh.errors import ConfigError, WaitTimeoutError
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from d8mesh.options import FITNESS_DEFAULT
from d8mesh.options import evolution as add_arguments
from tests.in_process import InProcess

HANDLERS: dict[str, Handler] = {
    "evolution_crossover": evolution_crossover,
    "evolution_mutation": evolution_mutation,
}


#: Costs that plots stumble over: none, equal, almost equal, far apart.
COSTS = (
    [1e-300, WORST],
    [0.0, 0.0],
    [5.0],
    [WORST, WORST],
    [1.0, 1.0000000000000002],
    [0.0, WORST],
)


def evolved(plan: EvolutionPlan, handlers: dict[str, Handler] | None = None) -> EvolutionHistory:
    history = EvolutionHistory()
    with InProcess(handlers or HANDLERS) as mesh:
        evolve(mesh, plan, history=history)
    return history


@pytest.mark.parametrize("name", FITNESS)
def test_every_problem_gets_better(name: str) -> None:
    plan = EvolutionPlan(
        problem=FITNESS[name], population=24, generations=12, mutation_rate=0.15, seed=7
    )
    history = evolved(plan)
    assert history.best_costs == sorted(history.best_costs, reverse=True)
    assert history.best_costs[-1] < 0.8 * history.best_costs[0]
    assert history.mean_costs[-1] < 0.8 * history.mean_costs[0]
    assert plan.problem.cost(history.best) == history.best_costs[-1]
    assert history.failed_tasks == 0


def test_a_long_run_of_the_defaults_comes_close_to_perfect() -> None:
    history = evolved(EvolutionPlan(problem=FITNESS["sphere"], generations=60, seed=1))
    assert history.best_costs[-1] < 0.02 * history.best_costs[0]


def test_the_same_seed_is_the_same_run_whatever_the_order_of_the_workers() -> None:
    plan = EvolutionPlan(problem=FITNESS["rastrigin"], population=12, generations=5, seed=42)
    assert evolved(plan) == evolved(plan)
    other = EvolutionPlan(problem=FITNESS["rastrigin"], population=12, generations=5, seed=43)
    assert evolved(plan).best != evolved(other).best


def test_a_perfect_genome_ends_the_run() -> None:
    plan = EvolutionPlan(
        problem=FITNESS["onemax"], population=40, generations=500, mutation_rate=0.02
    )
    history = evolved(plan)
    assert history.best_costs[-1] == 0
    assert len(history.best_costs) < 500


def test_a_task_that_fails_or_lies_leaves_the_parent() -> None:
    def broken(data: Data, context: TaskContext) -> object:
        raise ValueError("out of luck")

    def lying(data: Data, context: TaskContext) -> object:
        return {"success": True, "genome": {"x": ["not a number"]}}

    plan = EvolutionPlan(problem=FITNESS["sphere"], population=10, generations=2, seed=3)
    history = evolved(plan, {"evolution_crossover": broken, "evolution_mutation": lying})
    assert history.failed_tasks == history.tasks == 2 * 2 * 9
    assert history.best_costs[-1] == history.best_costs[0]


def test_a_timeout_bounds_the_whole_run_and_says_why_it_waited(tmp_path: Path) -> None:
    plan, soon = EvolutionPlan(problem=FITNESS["sphere"], population=4), time.monotonic() + 0.3
    with (
        InProcess({}) as mesh,
        pytest.raises(WaitTimeoutError, match="no worker in the mesh runs evolution_crossover"),
    ):
        run_with(mesh, plan, config=Config(), options=options(tmp_path), until=soon)
    assert (tmp_path / "evolution.json").exists()


def test_nobody_at_work_ends_with_an_error_and_what_there_was_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evolution, "BATCH_S", 0.3)
    plan = EvolutionPlan(problem=FITNESS["sphere"], population=4)
    with InProcess({}) as mesh, pytest.raises(WaitTimeoutError):
        run_with(mesh, plan, config=Config(), options=options(tmp_path))
    assert (tmp_path / "evolution.json").exists()


def test_the_time_to_wait_is_the_persons_to_say(tmp_path: Path) -> None:
    plan, soon = EvolutionPlan(problem=FITNESS["sphere"], population=4), time.monotonic() + 0.3
    with InProcess({}) as mesh, pytest.raises(WaitTimeoutError):
        run_with(mesh, plan, config=Config(), options=options(tmp_path), until=soon)


def test_a_run_is_told_in_spanish_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = EvolutionPlan(problem=FITNESS["sphere"], population=4, generations=2, seed=5)
    words.use("es")
    try:
        with InProcess(HANDLERS) as mesh:
            run_with(mesh, plan, config=Config(), options=options(tmp_path))
    finally:
        words.use(words.ENGLISH)
    told = capsys.readouterr()
    assert "mejor coste" in told.out
    assert f"guardado en {tmp_path}" in told.out
    assert told.err.startswith("Evolución (sphere): ")


def options(folder: Path | None = None, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | {"output": folder, **more})


def test_a_run_saves_its_numbers_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = EvolutionPlan(problem=FITNESS["sphere"], population=8, generations=3, seed=5)
    with InProcess(HANDLERS) as mesh:
        assert run_with(mesh, plan, config=Config(), options=options(tmp_path)) == 0
    report = json.loads((tmp_path / "evolution.json").read_text("utf-8"))
    assert (report["seed"], report["generations"], report["tasks"]) == (5, 3, 3 * 2 * 7)
    assert len(report["best_costs"]) == len(report["mean_costs"]) == 4
    picture = (tmp_path / "fitness.svg").read_text("utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    said = capsys.readouterr()
    assert str(tmp_path) in said.out
    assert "3/3" in said.err


def test_a_run_in_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = EvolutionPlan(problem=FITNESS["text"], population=4, generations=1)
    with InProcess(HANDLERS) as mesh:
        run_with(mesh, plan, config=Config(data_dir=str(tmp_path)), options=options(json=True))
    report = json.loads(capsys.readouterr().out)
    assert report["fitness"] == "text"
    assert Path(report["folder"]).parent == tmp_path / "evolution"


def test_ctrl_c_saves_what_there_is(tmp_path: Path) -> None:
    class Interrupted(InProcess):
        def submit_many(self, *args: Any, **more: Any) -> Any:
            if len(self.submitted) > 30:
                raise KeyboardInterrupt
            return super().submit_many(*args, **more)

    plan = EvolutionPlan(problem=FITNESS["sphere"], population=8, generations=50)
    with Interrupted(HANDLERS) as mesh:
        assert run_with(mesh, plan, config=Config(), options=options(tmp_path)) == 130
    report = json.loads((tmp_path / "evolution.json").read_text("utf-8"))
    assert 0 < report["generations"] < 50


@pytest.mark.parametrize("costs", COSTS)
def test_any_costs_can_be_plotted_without_anything_from_elsewhere(costs: list[float]) -> None:
    history = EvolutionHistory(best_costs=costs, mean_costs=costs)
    picture = plot(EvolutionPlan(problem=FITNESS["sphere"]), history)
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "src=" not in picture
    assert "@import" not in picture


def test_an_unknown_fitness_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nope' is not known.*sphere.*text"):
        run(Config(), options(fitness="nope"))
    with pytest.raises(ConfigError, match=r"did you mean rastrigin\?"):
        run(Config(), options(fitness="Rastrigan"))
    assert FITNESS_DEFAULT in FITNESS


def test_plotting_leaves_the_import_machinery_as_it_was() -> None:
    plot(
        EvolutionPlan(problem=FITNESS["sphere"]),
        EvolutionHistory(best_costs=[1.0], mean_costs=[2.0]),
    )
    assert all(hasattr(finder, "find_spec") for finder in sys.meta_path)
