"""The report stands alone, shows the best and its answers, and what models wrote is text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from d8mesh.apps.agent_questions import AgentQuestion
from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.evolution_file import EvolutionHistory
from d8mesh.apps.evolution_report import page_of
from d8mesh.apps.fitness import FITNESS
from d8mesh.apps.genes import DEFAULT_FORM
from d8mesh.apps.islands import EvolutionPlan, first_populations, ranked
from d8mesh.apps.scores import Contest, GenomeScore, ScoreBook, TriedAnswer, key_of

EVIL = '<script>alert(1)</script><img src="http://x/">'
AGENT = AgentTrial(
    form=DEFAULT_FORM, questions=(AgentQuestion(question=f"a? {EVIL}", contains=EVIL),)
)


class Tags(HTMLParser):
    """Notes tags that load or run anything."""

    def __init__(self) -> None:
        super().__init__()
        self.loading: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in ("script", "img", "iframe", "link", "object") or names & {"src", "onclick"}:
            self.loading.append(tag)


def report(problem: Contest) -> str:
    plan = EvolutionPlan(problem=problem, population=4, islands=2)
    populations = first_populations(plan)
    answers = (TriedAnswer(number=0, points=0.0, text=EVIL, error=f"late {EVIL}"),)
    score = GenomeScore(cost=0.5, failures=1, error=EVIL, tokens=77, answers=answers)
    scores = {key_of(genome): score for each in populations for genome in each}
    history = EvolutionHistory(book=ScoreBook(scores))
    history.add([ranked(each, history.book) for each in populations])
    return page_of(plan, history, summary=f"all {EVIL}", lang="en")


@pytest.mark.parametrize("problem", [AGENT, FITNESS["text"]])
def test_the_page_stands_alone(problem: Contest) -> None:
    page = report(problem)
    tags = Tags()
    tags.feed(page)
    assert tags.loading == []
    assert "default-src 'none'" in page
    assert page.count("<svg") == 1
    assert "island 2" in page


def test_what_the_best_is_and_answered_stands_in_it() -> None:
    page = report(AGENT)
    for wanted in (*DEFAULT_FORM.genes, "&lt;script&gt;alert(1)", "8 failures", "late", "77",
                   "submit agent_action @best.json", "was asked: 1"):  # fmt: skip
        assert wanted in page, wanted
