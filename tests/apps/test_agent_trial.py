"""Agents are asked all at once, scored by their answers, and a failure is a failure."""

from __future__ import annotations

import json
import random

import pytest

from d8mesh.apps.agent_questions import AgentQuestion
from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.genes import DEFAULT_FORM
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.scores import Genome, GenomeScore
from d8mesh.backends.embedded import EmbeddedBackend
from d8mesh.handlers import Data, TaskContext
from d8mesh.handlers.llm import llm_handlers
from tests.in_process import InProcess
from tests.real_model import needs_model

SKY = AgentQuestion(question="sky?", equals="blue", weight=3.0)
FRIEND = AgentQuestion(question="friend?", rubric="kind")


def trial(*questions: AgentQuestion, judge: str = "") -> AgentTrial:
    return AgentTrial(form=DEFAULT_FORM, questions=questions or (SKY, FRIEND), seed=5, judge=judge)


def genomes(count: int) -> list[Genome]:
    chance = random.Random(1)
    return [DEFAULT_FORM.new(chance) for _ in range(count)]


def answering(data: Data, context: TaskContext) -> object:
    text = "blue" if "sky" in data["messages"][-1]["content"] else "hello"
    if "format" in data:
        text = '{"why": "so", "mark": 4}'
    return {"success": True, "output": text, "tokens_used": 10, "duration_s": 0.5}


def scored(
    contest: AgentTrial, mesh: InProcess, count: int = 2
) -> tuple[dict[int, GenomeScore], MeshBatches]:
    batches, found = MeshBatches(mesh), dict[int, GenomeScore]()

    def keep(index: int, score: GenomeScore) -> None:
        assert index not in found
        found[index] = score

    contest.try_all(genomes(count), batches, keep)
    assert sorted(found) == list(range(count))
    return found, batches


def test_the_cost_is_the_part_of_the_points_that_was_missed() -> None:
    with InProcess({"agent_action": answering}) as mesh:
        found, batches = scored(trial(judge="j:1b"), mesh)
        assert found[0].cost == round(1 - (3 * 1 + 0.4) / 4, 6)
        assert [each.points for each in found[0].answers] == [1, 0.4]
        assert (found[0].tokens, found[0].spent_s, found[0].failures) == (20, 1.0, 0)
        assert batches.tasks == 2 * 2 + 2
        first = [data for _, data in mesh.submitted[:4]]
        assert all(data["seed"] == 5 for data in first), "all are asked before any is judged"
        assert {data["model"] for _, data in mesh.submitted[4:]} == {"j:1b"}


def test_an_answer_that_failed_brings_no_points_and_is_told() -> None:
    def half(data: Data, context: TaskContext) -> object:
        if "friend" in data["messages"][-1]["content"]:
            raise ValueError("out of memory")
        return answering(data, context)

    with InProcess({"agent_action": half}) as mesh:
        found, _ = scored(trial(), mesh)
    assert (found[0].cost, found[0].failures, found[0].is_failed) == (0.25, 1, False)
    assert found[0].error == found[0].answers[1].error == "ValueError: out of memory"


def test_an_agent_of_which_nothing_is_known_has_failed() -> None:
    def broken(data: Data, context: TaskContext) -> object:
        raise ValueError("no model")

    with InProcess({"agent_action": broken}) as mesh:
        found, _ = scored(trial(), mesh)
    assert all(score.is_failed and score.failures == 2 for score in found.values())


def test_an_answer_without_a_text_is_a_failure() -> None:
    def silent(data: Data, context: TaskContext) -> object:
        return {"success": True, "output": None}

    with InProcess({"agent_action": silent}) as mesh:
        found, _ = scored(trial(SKY), mesh, 1)
    assert found[0].error == "the answer has no text"


def test_a_judge_that_gives_no_mark_is_asked_again_and_then_it_is_a_failure() -> None:
    asked = []

    def vague(data: Data, context: TaskContext) -> object:
        if "format" in data:
            asked.append(data)
            return {"success": True, "output": "well"}
        return answering(data, context)

    with InProcess({"agent_action": vague}) as mesh:
        found, _ = scored(trial(), mesh, 1)
    assert len(asked) == 2
    assert found[0].failures == 1
    assert "the judge gave no mark" in found[0].error
    assert found[0].answers[1].text == "hello"


def test_other_questions_or_another_judge_make_another_contest() -> None:
    identities = {trial().identity, trial(SKY).identity, trial(judge="x").identity}
    assert len(identities) == 3
    assert json.loads(trial().identity)


@needs_model
@pytest.mark.timeout(300)
def test_a_small_model_answers_and_marks_in_structured_output() -> None:
    backend = EmbeddedBackend(None)
    contest = trial(AgentQuestion(question="What is the capital of France?", contains="Paris"),
                    AgentQuestion(question="Say hello.", rubric="A greeting."))  # fmt: skip
    calm = {**contest.form.new(random.Random(1)), "temperature": 0.0, "max_tokens": 0.5}
    found: list[GenomeScore] = []
    try:
        with InProcess(llm_handlers(backend)) as mesh:
            genome = contest.repaired(calm)
            contest.try_all([genome], MeshBatches(mesh), lambda index, score: found.append(score))
    finally:
        backend.close()
    (score,) = found
    assert score.failures == 0, score.error
    assert score.answers[0].points == 1
    assert score.tokens > 0
