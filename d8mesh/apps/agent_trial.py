"""Agents put to the test: each is asked all questions by the mesh, and its answers are scored."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from d8mesh.apps.agent_questions import AgentQuestion, mark_in
from d8mesh.apps.genes import GenomeForm, agent_data
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.progress import one_line
from d8mesh.apps.scores import MAX_KEPT_CHARS, Genome, GenomeScore, TriedAnswer, failed_score
from d8mesh.apps.work import Outcome

#: A judge that gave no mark is asked once more.
MAX_JUDGED: Final = 2
COST_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTrial:
    """The contest of agents: the cost is the part of the points that was missed."""

    form: GenomeForm
    questions: tuple[AgentQuestion, ...]
    seed: int = 0
    #: the model that judges; "" is any
    judge: str = ""
    name: str = "agent"

    @property
    def identity(self) -> str:
        """Its genes, questions and judge."""
        parts = {"genes": self.form, "questions": self.questions, "judge": self.judge}
        return json.dumps(msgspec.to_builtins(parts), sort_keys=True)

    @property
    def keeps_scores(self) -> bool:
        """True: they are dear."""
        return True

    def new(self, chance: random.Random) -> Genome:
        """Return a genome by chance."""
        return self.form.new(chance)

    def repaired(self, genome: Genome) -> Genome:
        """Return `genome` within its bounds."""
        return self.form.repaired(genome)

    def expressed(self, genome: Genome) -> Mapping[str, object]:
        """Return what `genome` stands for."""
        return self.form.expressed(genome)

    def data(self, genome: Genome, question: str) -> dict[str, Any]:
        """Return the data of a task that asks the agent of `genome` a question."""
        return agent_data(self.form.expressed(genome), question)

    def ready(self, genome: Genome) -> Mapping[str, object]:
        """Return the data of a task: the agent of `genome`, asked the first question."""
        return self.data(genome, self.questions[0].question)

    def try_all(
        self,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
    ) -> None:
        """Ask every genome every question, all at once; score each when its answers are there."""
        count = len(self.questions)
        places = [(g, q) for g in range(len(genomes)) for q in range(count)]
        # A service that keeps to seeds gives the same answer in the next run with the same seed.
        datas = [
            {"seed": self.seed, **self.data(genomes[g], self.questions[q].question)}
            for g, q in places
        ]
        tallies: defaultdict[int, _Tally] = defaultdict(_Tally)
        to_judge: list[tuple[int, int, str]] = []
        for outcome in mesh.ends("agent_action", datas):
            g, q = places[outcome.index]
            answer = tallies[g].take(outcome, q)
            if answer is not None and self.questions[q].rubric is not None:
                to_judge.append((g, q, answer))
            elif answer is not None:
                tallies[g].put(q, answer, self.questions[q].points(answer))
            if len(tallies[g].answers) == count:
                on_score(g, self._score(tallies[g]))
        for _ in range(MAX_JUDGED):
            to_judge = self._judge(to_judge, tallies, mesh, on_score)
        for g, q, answer in to_judge:
            tallies[g].put(q, answer, 0.0, error=tallies[g].judge_errors.get(q, "not judged"))
            if len(tallies[g].answers) == count:
                on_score(g, self._score(tallies[g]))

    def _judge(
        self,
        to_judge: Sequence[tuple[int, int, str]],
        tallies: Mapping[int, _Tally],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
    ) -> list[tuple[int, int, str]]:
        """Have answers marked, all at once; return those that got no mark."""
        datas = [self.questions[q].judge_data(answer, self.judge) for _, q, answer in to_judge]
        left = []
        for outcome in mesh.ends("agent_action", datas):
            g, q, answer = to_judge[outcome.index]
            try:
                if outcome.result is None:
                    raise ValueError(f"the judge failed: {outcome.error}")
                tallies[g].put(q, answer, mark_in(str(outcome.result.get("output") or "")))
            except ValueError as error:
                tallies[g].judge_errors[q] = one_line(str(error))
                left.append((g, q, answer))
                continue
            if len(tallies[g].answers) == len(self.questions):
                on_score(g, self._score(tallies[g]))
        return left

    def _score(self, tally: _Tally) -> GenomeScore:
        answers = tuple(tally.answers[q] for q in range(len(self.questions)))
        errors = [each.error for each in answers if each.error]
        if len(errors) == len(answers):
            return failed_score(errors[0], failures=len(errors))
        weights = [question.weight for question in self.questions]
        points = sum(w * each.points for w, each in zip(weights, answers, strict=True))
        return GenomeScore(
            cost=round(max(1 - points / sum(weights), 0.0), COST_DECIMALS),
            failures=len(errors),
            error=errors[0] if errors else "",
            tokens=tally.tokens,
            spent_s=round(tally.spent_s, 3),
            answers=answers,
        )


class _Tally:
    """What is known of one genome so far."""

    def __init__(self) -> None:
        self.answers: dict[int, TriedAnswer] = {}
        self.judge_errors: dict[int, str] = {}
        self.tokens = 0
        self.spent_s = 0.0

    def take(self, outcome: Outcome, number: int) -> str | None:
        """Return the answer that came; None if none did, which is noted."""
        result = outcome.result
        text = None if result is None else result.get("output")
        if result is None or not isinstance(text, str):
            self.put(number, "", 0.0, error=one_line(outcome.error) or "the answer has no text")
            return None
        tokens, spent_s = result.get("tokens_used"), result.get("duration_s")
        self.tokens += tokens if isinstance(tokens, int) else 0
        self.spent_s += spent_s if isinstance(spent_s, int | float) else 0.0
        return text

    def put(self, number: int, text: str, points: float, *, error: str = "") -> None:
        kept = text if len(text) <= MAX_KEPT_CHARS else f"{text[:MAX_KEPT_CHARS]}…"
        self.answers[number] = TriedAnswer(number=number, points=points, text=kept, error=error)
