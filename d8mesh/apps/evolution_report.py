"""What Evolution found, as one HTML page: the plot, the best, its answers, the ranking.

The page stands alone: no script, no picture, no style from elsewhere, and it forbids itself to
load any. What models wrote is text in it and nothing else.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Final

from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.evolution_file import BEST_FILE, EvolutionHistory
from d8mesh.apps.evolution_plot import inline_plot
from d8mesh.apps.islands import EvolutionPlan
from d8mesh.apps.scores import GenomeScore
from d8mesh.program import command_name
from d8mesh.words import tr, translated

REPORT_FILE: Final = "evolution.html"
#: Rows of the ranking, and of answers: the JSON file has all.
MAX_RANKED_GENOMES: Final = 50
MAX_SHOWN_ANSWERS: Final = 500

_EVOLUTION_PAGE: Final = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><title>Evolution</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #2b8a3e; --bad: #c92a2a; }}
body {{ font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin-top: 2.5rem; }} .weak {{ color: #888; }}
table {{ border-collapse: collapse; width: 100%; }} .wide {{ overflow-x: auto; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .6rem; }}
th, td {{ border-bottom: 1px solid var(--line); }}
td {{ overflow-wrap: break-word; min-width: 5rem; }} td.number {{ min-width: 0; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.right {{ color: var(--good); }} .wrong {{ color: var(--bad); }}
.plot {{ background: white; border-radius: 6px; max-width: 56rem; }}
pre {{ background: var(--line); border-radius: 6px; padding: .8rem; white-space: pre-wrap; }}
</style></head><body>
{body}
</body></html>
"""


def page_of(plan: EvolutionPlan, history: EvolutionHistory, *, summary: str, lang: str) -> str:
    """Return the report of a run with a generation at least.

    Args:
        summary: the run in one sentence.
        lang: of the page, as HTML names it.
    """
    parts = [
        f"<h1>{_text(tr('Evolution ({problem})', problem=plan.problem.name))}</h1>",
        f"<p>{_text(summary)}</p>",
        *_failures(history),
        f'<div class="plot">{inline_plot(plan, history)}</div>',
        *_explained(plan),
        *_best(plan, history),
        *_answers(plan, history.best_score),
        *_ranking(plan, history),
    ]
    return _EVOLUTION_PAGE.format(lang=html.escape(lang), body="\n".join(parts))


def _failures(history: EvolutionHistory) -> Iterable[str]:
    scores = history.book.all().values()
    count = sum(score.failures for score in scores)
    if not count:
        return
    why = next(score.error for score in scores if score.error)
    told = tr("{count} failures, which bring no points; one of them: {why}", count=count, why=why)
    yield f'<p class="wrong">{_text(told)}</p>'


def _explained(plan: EvolutionPlan) -> Iterable[str]:
    yield f"<h2>{_text(tr('What the cost means'))}</h2><p>"
    if isinstance(plan.problem, AgentTrial):
        yield _text(
            tr(
                "Questions that each agent was asked: {count}. Its cost is the part of the "
                "points that it missed: 0 is all right, 1 is all wrong. Of equally good agents "
                "the one that needs fewer tokens goes first.",
                count=len(plan.problem.questions),
            )
        )
        yield _text(
            tr("The agents were tried with these questions alone: they may do worse with others.")
        )
    else:
        yield _text(tr("The fitness function gives the cost: 0 is perfect."))
    yield "</p>"


def _best(plan: EvolutionPlan, history: EvolutionHistory) -> Iterable[str]:
    yield f"<h2>{_text(tr('The best'))}</h2><table>"
    for name, value in plan.problem.expressed(history.best).items():
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"<tr><th>{_text(name)}</th><td>{_text(shown)}</td></tr>"
    yield "</table>"
    if isinstance(plan.problem, AgentTrial):
        command = f"{command_name()} submit agent_action @{BEST_FILE} --wait"
        use = tr(
            "Its data, with the first question, is in {file}; to ask it, in its folder:",
            file=BEST_FILE,
        )
        yield f"<p>{_text(use)}</p><pre>{_text(command)}</pre>"


def _answers(plan: EvolutionPlan, score: GenomeScore) -> Iterable[str]:
    if not isinstance(plan.problem, AgentTrial) or not score.answers:
        return
    heads = (tr("points"), tr("question"), tr("expected"), tr("answer"))
    yield f'<h2>{_text(tr("What the best answered"))}</h2><div class="wide"><table><tr>'
    yield "".join(f"<th>{_text(head)}</th>" for head in heads) + "</tr>"
    for answer in score.answers[:MAX_SHOWN_ANSWERS]:
        question = plan.problem.questions[answer.number]
        shade = "right" if answer.points >= 0.5 else "wrong"
        said = _text(answer.text)
        if answer.error:
            said += f' <span class="wrong">{_text(translated(answer.error))}</span>'
        expected = f"{question.check}: {question.expected}"
        yield (
            f'<tr><td class="number {shade}">{answer.points:g}</td>'
            f"<td>{_text(question.question)}</td><td>{_text(expected)}</td><td>{said}</td></tr>"
        )
    yield "</table></div>"


def _ranking(plan: EvolutionPlan, history: EvolutionHistory) -> Iterable[str]:
    # By what they stand for, not by how they are bred: only those of the last generation are.
    seen = {
        json.dumps(plan.problem.expressed(genome)): (history.book.of(genome), genome)
        for population in history.populations
        for genome in population
    }
    rows = sorted(seen.values(), key=lambda row: row[0].rank)
    names = list(plan.problem.expressed(history.best))
    title = tr("The last generation, best first")
    yield f'<h2>{_text(title)}</h2><div class="wide"><table><tr>'
    heads = (tr("cost"), tr("failures"), tr("tokens"), tr("seconds"))
    yield "".join(f'<th class="number">{_text(head)}</th>' for head in heads)
    yield "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr>"
    for score, genome in rows[:MAX_RANKED_GENOMES]:
        cost = tr("failed") if score.is_failed else f"{score.cost:.6g}"
        numbers = (cost, str(score.failures), str(score.tokens), f"{score.spent_s:.1f}")
        yield "<tr>" + "".join(f'<td class="number">{_text(each)}</td>' for each in numbers)
        values = plan.problem.expressed(genome)
        yield "".join(f"<td>{_text(_short(values[name]))}</td>" for name in names) + "</tr>"
    yield "</table></div>"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _text(text: str) -> str:
    """Return `text` as HTML shows it, in one line and without what drives anything."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return html.escape(" ".join(line.split()))
