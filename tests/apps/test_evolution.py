"""A population gets better, the same way for the same seed, and the run is saved."""

from __future__ import annotations

import argparse
import json
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from d8mesh import words
from d8mesh.apps import work
from d8mesh.apps.evolution import NOTHING_TRIED, evolve, run, run_with
from d8mesh.apps.evolution_file import EvolutionHistory
from d8mesh.apps.evolution_plan import plan_of
from d8mesh.apps.fitness import FITNESS, Problem
from d8mesh.apps.islands import EvolutionPlan
from d8mesh.config import Config
from d8mesh.errors import ConfigError, D8Error, WaitTimeoutError
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.chat_fields import agent_request
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from d8mesh.options import FITNESS_DEFAULT
from d8mesh.options import evolution as add_arguments
from tests.in_process import InProcess

HANDLERS: dict[str, Handler] = {
    "evolution_crossover": evolution_crossover,
    "evolution_mutation": evolution_mutation,
}


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
    assert FITNESS[name].cost(history.best) == history.best_costs[-1]
    assert history.failed_tasks == 0


def test_a_long_run_of_the_defaults_comes_close_to_perfect() -> None:
    history = evolved(EvolutionPlan(problem=FITNESS["sphere"], generations=60, seed=1))
    assert history.best_costs[-1] < 0.02 * history.best_costs[0]


def test_the_same_seed_is_the_same_run_whatever_the_order_of_the_workers() -> None:
    plan = EvolutionPlan(problem=FITNESS["rastrigin"], population=12, generations=5, seed=42)
    one, two = evolved(plan), evolved(plan)
    assert (one.best, one.populations, one.mean_costs) == (
        two.best,
        two.populations,
        two.mean_costs,
    )
    other = EvolutionPlan(problem=FITNESS["rastrigin"], population=12, generations=5, seed=43)
    assert one.best != evolved(other).best


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
    monkeypatch.setattr(work, "NOBODY_S", 0.3)
    monkeypatch.setattr(work, "SILENCE_S", 0.1)
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
    assert "<svg" in (tmp_path / "evolution.html").read_text("utf-8")
    assert json.loads((tmp_path / "best.json").read_text("utf-8")) == report["best"]
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


def test_an_unknown_fitness_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nope' is not known.*sphere.*text"):
        run(Config(), options(fitness="nope"))
    with pytest.raises(ConfigError, match=r"did you mean rastrigin\?"):
        run(Config(), options(fitness="Rastrigan"))
    assert next(iter(FITNESS)) == FITNESS_DEFAULT


def islands_of(**more: Any) -> EvolutionPlan:
    settings: dict[str, Any] = {"population": 6, "generations": 6, "islands": 3, "seed": 4}
    return EvolutionPlan(problem=FITNESS["sphere"], migrate_every=2, **settings | more)


class Interrupted(InProcess):
    """A mesh at which a person presses Ctrl-C after so many batches."""

    def __init__(self, handlers: dict[str, Handler], batches: int) -> None:
        super().__init__(handlers)
        self._left = batches

    def submit_many(self, *args: Any, **more: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().submit_many(*args, **more)


def test_each_batch_of_all_islands_is_given_to_the_mesh_at_once(tmp_path: Path) -> None:
    batches = 2 * 6
    with Interrupted(HANDLERS, batches) as mesh:
        assert run_with(mesh, islands_of(), config=Config(), options=options(tmp_path)) == 0
        assert len(mesh.submitted) == batches * 3 * 5


def test_a_run_that_was_interrupted_goes_on_as_it_would_have(tmp_path: Path) -> None:
    with InProcess(HANDLERS) as mesh:
        run_with(mesh, islands_of(), config=Config(), options=options(tmp_path / "whole"))
    parts = options(tmp_path / "parts")
    with Interrupted(HANDLERS, 7) as mesh:
        assert run_with(mesh, islands_of(), config=Config(), options=parts) == 130
    record = json.loads((tmp_path / "parts" / "evolution.json").read_text("utf-8"))
    assert (record["generations"], record["stopped"]) == (3, "interrupted")
    with InProcess(HANDLERS) as mesh:
        run_with(mesh, islands_of(), config=Config(), options=parts)
    whole, resumed = (
        json.loads((tmp_path / name / "evolution.json").read_text("utf-8"))
        for name in ("whole", "parts")
    )
    for name in ("best", "best_costs", "mean_costs", "island_costs", "populations", "stopped"):
        assert whole[name] == resumed[name], name


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    with InProcess(HANDLERS) as mesh:
        run_with(mesh, islands_of(), config=Config(), options=options(tmp_path))
        with pytest.raises(ConfigError, match=r"other population \(6, not 8\).*--output"):
            run_with(mesh, islands_of(population=8), config=Config(), options=options(tmp_path))


def test_a_run_ends_when_nothing_gets_better() -> None:
    flat = Problem(name="flat", summary="", new=FITNESS["sphere"].new, raw_cost=lambda genome: 1.0)
    history = evolved(EvolutionPlan(problem=flat, population=4, generations=50, patience=3))
    assert (history.generations, history.stopped) == (3, "patience")


def test_the_time_limit_ends_a_run_with_what_there_is(tmp_path: Path) -> None:
    with InProcess({}) as mesh:
        limited = options(tmp_path, time_limit_s=0.3)
        assert run_with(mesh, islands_of(), config=Config(), options=limited) == 0
    assert json.loads((tmp_path / "evolution.json").read_text("utf-8"))["stopped"] == "time"


def agents(tmp_path: Path, **more: Any) -> argparse.Namespace:
    questions = tmp_path / "questions.json"
    questions.write_text(
        '[{"question": "sky?", "equals": "blue"}, {"question": "friend?", "rubric": "kind"}]',
        "utf-8",
    )
    given = {"questions": questions, "population": 8, "generations": 4, "seed": 2}
    return options(tmp_path / "run", **given | more)


def model(data: Data, context: TaskContext) -> object:
    """Answer right when it is calm."""
    asked = data["messages"][-1]["content"]
    if "format" in data:
        text = json.dumps({"why": "it is", "mark": 10 if "kindly" in asked else 2})
    elif "sky" in asked:
        text = "Blue." if data["temperature"] < 0.5 else "It is rather blue"
    else:
        text = "kindly" if data["top_p"] < 0.8 else "no"
    return {"success": True, "output": text, "tokens_used": data["max_tokens"], "duration_s": 0.1}


def test_agents_get_better_and_the_best_is_ready_to_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = agents(tmp_path, islands=2, json=True)
    with InProcess(HANDLERS | {"agent_action": model}) as mesh:
        assert run_with(mesh, plan_of(given), config=Config(), options=given) == 0
        asked = [data for kind, data in mesh.submitted if kind == "agent_action"]
    agent_request(json.loads((tmp_path / "run" / "best.json").read_text("utf-8")))  # or it raises
    told = json.loads(capsys.readouterr().out)
    assert told["best_cost"] == 0
    assert told["stopped"] == "solved"
    assert "scores" not in told
    plain = [json.dumps(data, sort_keys=True) for data in asked if "format" not in data]
    assert len(plain) == len(set(plain)), "no agent is asked twice"
    report = (tmp_path / "run" / "evolution.html").read_text("utf-8")
    assert "kindly" in report
    assert "<script" not in report


def test_what_was_answered_before_an_interruption_is_not_asked_again(tmp_path: Path) -> None:
    given = agents(tmp_path)
    handlers = HANDLERS | {"agent_action": model}
    with Interrupted(handlers, 4) as first:
        assert run_with(first, plan_of(given), config=Config(), options=given) == 130
    with InProcess(handlers) as second:
        run_with(second, plan_of(given), config=Config(), options=given)
    before, after = (
        {json.dumps(data, sort_keys=True) for kind, data in mesh.submitted if "seed" in data
         and kind == "agent_action"}
        for mesh in (first, second)
    )  # fmt: skip
    assert before
    assert not before & after


def test_a_generation_that_fails_as_a_whole_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    def broken(data: Data, context: TaskContext) -> object:
        raise ValueError("no model today")

    given = agents(tmp_path)
    with (
        InProcess(HANDLERS | {"agent_action": broken}) as mesh,
        pytest.raises(D8Error, match=r"all 8 genomes of the generation failed: .*no model today"),
    ):
        run_with(mesh, plan_of(given), config=Config(), options=given)


def test_failures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shy(data: Data, context: TaskContext) -> object:
        if "sky" in data["messages"][-1]["content"]:
            raise ValueError("no sky today")
        return model(data, context)

    given = agents(tmp_path, generations=1)
    with InProcess(HANDLERS | {"agent_action": shy}) as mesh:
        assert run_with(mesh, plan_of(given), config=Config(), options=given) == 0
    assert "failures, which bring no points; one of them: ValueError: no sky today" in (
        capsys.readouterr().err
    )
    assert "no sky today" in (tmp_path / "run" / "evolution.html").read_text("utf-8")


def test_nothing_tried_in_the_time_is_code_1(tmp_path: Path) -> None:
    given = agents(tmp_path, time_limit_s=0.3)
    with InProcess({}) as mesh:
        code = run_with(mesh, plan_of(given), config=Config(), options=given)
    assert code == NOTHING_TRIED
