"""Options say what is evolved; those that contradict each other are refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.evolution_file import EvolutionHistory, save_record
from d8mesh.apps.evolution_plan import plan_of
from d8mesh.apps.fitness import FITNESS
from d8mesh.errors import ConfigError
from d8mesh.options import evolution


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evolution(parser)
    return parser.parse_args(words)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    file = tmp_path / "q.json"
    file.write_text('[{"question": "a?", "equals": "x"}]', "utf-8")
    return str(file)


def test_the_default_is_a_built_in_problem() -> None:
    assert plan_of(options()).problem is FITNESS["sphere"]
    assert plan_of(options("--fitness", "text")).problem is FITNESS["text"]


def test_questions_make_it_a_contest_of_agents(questions: str) -> None:
    for words in ([], ["--fitness", "agent"]):
        plan = plan_of(options(*words, "--questions", questions, "--judge", "j", "--seed", "3"))
        assert isinstance(plan.problem, AgentTrial)
        assert (plan.problem.judge, plan.problem.seed, plan.seed) == ("j", 3, 3)


def test_a_run_that_goes_on_keeps_its_seed(tmp_path: Path) -> None:
    first = plan_of(options())
    save_record(tmp_path, first, EvolutionHistory())
    assert plan_of(options("--output", str(tmp_path))).seed == first.seed


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--fitness", "agent"], "expected --questions FILE"),
        (["--fitness", "text", "--questions", "QUESTIONS"], "--questions is for"),
        (["--fitness", "text", "--genome", "QUESTIONS"], "--genome is for"),
        (["--fitness", "agnet"], "did you mean agent"),
        (["--fitness", "no.such.module:f"], "--fitness no.such.module: cannot be imported"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    questions: str, words: list[str], problem: str
) -> None:
    given = [questions if word == "QUESTIONS" else word for word in words]
    with pytest.raises(ConfigError, match=problem):
        plan_of(options(*given))
