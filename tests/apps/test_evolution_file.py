"""What a run leaves is what it goes on from; anything else is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.apps.agent_questions import AgentQuestion
from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.evolution_file import (
    EVOLUTION_FILE,
    EVOLUTION_FORMAT,
    EvolutionHistory,
    EvolutionRecord,
    load_history,
    save_record,
    seed_in,
    told_of,
)
from d8mesh.apps.genes import DEFAULT_FORM
from d8mesh.apps.islands import EvolutionPlan, first_populations, ranked
from d8mesh.apps.scores import WORST, GenomeScore, ScoreBook, TriedAnswer, failed_score, key_of
from d8mesh.errors import ConfigError, D8Error


def plan(text: str = "a?", **more: Any) -> EvolutionPlan:
    questions = (AgentQuestion(question=text, equals="x"),)
    problem = AgentTrial(form=DEFAULT_FORM, questions=questions)
    return EvolutionPlan(problem=problem, **{"population": 3, "islands": 2, "seed": 8} | more)


def history_of(wanted: EvolutionPlan) -> EvolutionHistory:
    populations = first_populations(wanted)
    answers = (TriedAnswer(number=0, points=1.0, text="x"),)
    scores = {
        key_of(genome): GenomeScore(cost=n / 10, answers=answers)
        for n, genome in enumerate(g for each in populations for g in each)
    }
    scores[key_of(populations[0][0])] = failed_score("no luck")
    history = EvolutionHistory(book=ScoreBook(scores), tasks=6)
    history.add([ranked(each, history.book) for each in populations])
    return history


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    history = history_of(plan())
    save_record(tmp_path, plan(), history)
    found = load_history(tmp_path, plan(generations=99))
    assert found.populations == history.populations
    assert (found.best, found.best_costs, found.tasks) == (history.best, [0.1], 6)
    assert found.book.all() == history.book.all()
    assert seed_in(tmp_path) == 8
    assert json.loads((tmp_path / EVOLUTION_FILE).read_text("utf-8"))["format"] == EVOLUTION_FORMAT


def test_failed_genomes_are_not_in_the_mean() -> None:
    history = history_of(plan())
    assert history.mean_costs == [pytest.approx(0.3)]
    assert history.island_costs == [[0.1, 0.3]]
    worst = EvolutionHistory(book=ScoreBook({key_of({"n": 1}): failed_score("no")}))
    worst.add([[{"n": 1}]])
    assert worst.mean_costs == [WORST]


def test_programs_are_told_all_but_populations_and_scores(tmp_path: Path) -> None:
    save_record(tmp_path, plan(), history_of(plan()))
    record = msgspec.json.decode((tmp_path / EVOLUTION_FILE).read_bytes(), type=EvolutionRecord)
    told = told_of(record)
    assert set(EvolutionRecord.__struct_fields__) - set(told) == {"populations", "scores"}
    assert told["failures"] == 1
    assert set(told["best"]) == set(DEFAULT_FORM.genes)


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    assert load_history(tmp_path, plan()).generations == 0
    assert seed_in(tmp_path) is None
    assert seed_in(None) is None


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (plan("b?"), "other genes, questions or judge"),
        (plan(population=4), r"other population \(3, not 4\)"),
        (plan(islands=1), r"other islands \(2, not 1\)"),
        (plan(seed=9), r"other seed \(8, not 9\)"),
        (plan(mutation_rate=0.5), r"other mutation_rate \(0.2, not 0.5\)"),
    ],
)
def test_a_run_of_other_settings_is_refused(
    tmp_path: Path, other: EvolutionPlan, problem: str
) -> None:
    save_record(tmp_path, plan(), history_of(plan()))
    with pytest.raises(ConfigError, match=rf"{problem}: choose another --output"):
        load_history(tmp_path, other)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "d8-evolution-1"}', "\x00"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / EVOLUTION_FILE).write_text(content, "utf-8")
    with pytest.raises(D8Error, match="is not a result of Evolution"):
        load_history(tmp_path, plan())


def test_a_file_that_lacks_scores_is_refused(tmp_path: Path) -> None:
    save_record(tmp_path, plan(), history_of(plan()))
    file = tmp_path / EVOLUTION_FILE
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"scores": {}}), "utf-8")
    with pytest.raises(D8Error, match="is not whole"):
        load_history(tmp_path, plan())
