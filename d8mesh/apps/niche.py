"""Niche Discovery: each market in each geography is one question to the mesh's models.

Answers are checked; a bad one is asked for again, then listed as unusable. Whatever was
found is on disk at any time: an interrupted run keeps it, and a run with the same
``--output`` goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d8mesh.apps import work
from d8mesh.apps.answers import NICHE_SCHEMA, SCORES, niches_in
from d8mesh.apps.findings import (
    CSV_NAME,
    JSON_NAME,
    MARKDOWN_NAME,
    Finding,
    Findings,
    load,
    save,
)
from d8mesh.apps.niche_plan import NichePlan, read_plan
from d8mesh.apps.niche_report import HTML_NAME, page
from d8mesh.apps.progress import Progress, one_line
from d8mesh.apps.results import result_folder, write_whole
from d8mesh.apps.tables import lines_of
from d8mesh.apps.work import (
    INTERRUPTED,
    Outcome,
    Pending,
    SubmitsMany,
    cancel_all,
    connected,
    outcomes,
)
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, width
from d8mesh.errors import BackendAnswerError, WaitTimeoutError
from d8mesh.words import tr, translated

#: What a question has when nothing was answered yet: what the model is, and what is asked.
QUESTION_MESSAGES: Final = 2
#: A bad answer is asked for twice more: a small model's may be unusable even with a schema.
MAX_ASKS: Final = 3
#: Questions under way at the same time: enough for a hundred machines, and no flood.
QUESTIONS_AT_ONCE: Final = 100
#: Of a bad answer the model sees so much again, in UTF-8: a token is a byte at least, and a small
#: model's context must hold the question, this and an answer.
MAX_REPEATED_BYTES: Final = 1500
#: What was found is written at most once in so many seconds, and at the end.
SAVE_S: Final = 1.0
#: Room for three niches, and for the thoughts of a model that thinks aloud.
NICHE_TOKENS: Final = 4000
TEMPERATURE: Final = 0.4
#: The best niches shown at the end; the files have all.
SHOWN: Final = 10
NOTHING_USABLE: Final = 1
FILES: Final = (HTML_NAME, JSON_NAME, MARKDOWN_NAME, CSV_NAME)

_SYSTEM: Final = (
    "You are a market analyst. You answer with one JSON object and nothing else: "
    "no explanation, no Markdown."
)
_QUESTION: Final = """Find three niches that a small company could serve.
Market: {market}
Geography: {geography}

Give each niche a short name, a description of one or two sentences{language}, and four scores, \
numbers from 0 to 100: demand (how many want it), growth (how fast that grows), \
feasibility (how easily a small company can offer it) and competition (how many offer it already).

Answer with JSON of exactly this form:
{{"niches": [{{"name": "…", "description": "…", "demand": NUMBER, "growth": NUMBER, \
"feasibility": NUMBER, "competition": NUMBER}}]}}"""
_AGAIN: Final = "That cannot be used: {problem}. Answer again with the JSON object alone."
_IN_LANGUAGE: Final = {"es": " in Spanish", "en": " in English"}


def run(config: Config, options: argparse.Namespace) -> int:
    """Ask the mesh for niches and save them; return the exit code: 1 if none is usable.

    ``--timeout`` bounds all of it; without it waiting ends when no worker can answer.

    Raises:
        ConfigError: the file of markets is not one.
        D8Error: no orchestrator was found, or the results can't be read or written.
    """
    plan = read_plan(options.markets)
    with connected(config, options.timeout_s) as (client, until):
        return run_with(client, plan, config=config, options=options, until=until)


def run_with(
    client: SubmitsMany,
    plan: NichePlan,
    *,
    config: Config,
    options: argparse.Namespace,
    until: float | None = None,
) -> int:
    """Do what `run` does with a client that is there; waiting is over at `until`."""
    folder = result_folder(options.output, Path(config.data_dir) / "niche")
    findings, saved_at = load(folder), 0.0
    is_interrupted, problem = False, ""
    asked = [question_of(pair, config.lang) for pair in plan.pairs if not findings.is_found(pair)]
    with Progress("Niche Discovery", len(asked)) as progress:
        if len(asked) < len(plan.pairs):
            known = len(plan.pairs) - len(asked)
            progress.say(tr("{count} pairs were found before: not asked again", count=known))

        def settle(finding: Finding) -> None:
            nonlocal saved_at
            findings.put(finding)
            if time.monotonic() - saved_at >= SAVE_S:  # not for each answer of thousands
                saved_at = time.monotonic()
                save(folder, findings)
            pair = f"{finding.market}, {finding.geography}"
            progress.advance(tr("{id}: {what}", id=pair, what=finding.summary))

        try:
            discover(
                client,
                asked,
                until,
                at_once=options.at_once,
                on_settled=settle,
                on_silence=progress.why,
            )
        except KeyboardInterrupt:
            is_interrupted = True
        except WaitTimeoutError as error:
            waits = tr("--timeout SECONDS waits longer")
            if options.timeout_s is not None:
                waits = tr("--timeout SECONDS was {seconds} s", seconds=f"{options.timeout_s:g}")
            problem = tr("given up: {why}. {waits}", why=translated(str(error)), waits=waits)
        finally:
            save(folder, findings)
            write_whole(folder / HTML_NAME, page(findings, plan.pairs, lang=config.lang or "en"))
    if problem:
        progress.say(problem)
    _show(folder, plan, findings, is_json=options.json)
    if is_interrupted:
        return INTERRUPTED
    return 0 if any(findings.is_found(pair) for pair in plan.pairs) else NOTHING_USABLE


def discover(
    client: SubmitsMany,
    questions: Sequence[PairQuestion],
    until: float | None = None,
    *,
    at_once: int = QUESTIONS_AT_ONCE,
    on_settled: Callable[[Finding], None] = lambda finding: None,
    on_silence: Callable[[str], None] = lambda reason: None,
) -> None:
    """Ask all `questions`, bad answers again with what is wrong, a bounded number at a time.

    Ending early, whatever the reason, cancels what is still under way.

    Args:
        until: monotonic seconds when waiting is over; None waits as long as there is a worker
            that can, and `NOBODY_S` for one.
        at_once: no more of them are in the mesh at the same time.
        on_settled: told of each pair when it is found, or unusable.
        on_silence: told why nothing comes, once for each reason.

    Raises:
        WaitTimeoutError: `until` has come, or nobody can answer.
    """
    waiting, running = deque(questions), list[tuple[PairQuestion, Pending]]()
    reasons: set[str] = set()
    nobody_s = work.NOBODY_S if until is None else None

    def silent(reason: str) -> None:
        if reason not in reasons:
            reasons.add(reason)
            on_silence(reason)

    try:
        while waiting or running:
            asked = [waiting.popleft() for _ in range(min(len(waiting), at_once - len(running)))]
            if asked:
                left_s = None if until is None else max(until - time.monotonic(), 0.0)
                datas = [each.data for each in asked]
                tasks = client.submit_many("agent_action", datas, timeout=left_s)
                running += zip(asked, tasks, strict=True)
            under_way = [task for _, task in running]
            ends = outcomes(under_way, until=until, on_silence=silent, nobody_s=nobody_s)
            outcome = next(ends)
            question, _ = running.pop(outcome.index)
            finding, answer = _judged(question, outcome)
            if finding.is_found or answer is None or question.number == MAX_ASKS:
                on_settled(finding)
            else:
                waiting.appendleft(question.again(answer, finding.error))
    except BaseException:
        cancel_all([task for _, task in running])
        raise


# --- asking ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PairQuestion:
    """One question, and what was said about it before."""

    pair: tuple[str, str]
    messages: tuple[dict[str, str], ...]
    #: how often it is asked, with this time
    number: int = 1

    @property
    def data(self) -> dict[str, Any]:
        messages = list(self.messages)
        return {
            "messages": messages,
            "format": NICHE_SCHEMA,
            "temperature": TEMPERATURE,
            "max_tokens": NICHE_TOKENS,
        }

    def again(self, answer: str, problem: str) -> PairQuestion:
        """Return the question with its last bad answer and what is wrong with that."""
        told = answer.encode("utf-8", "replace")[:MAX_REPEATED_BYTES].decode("utf-8", "ignore")
        said = ({"role": "assistant", "content": told},) if told else ()
        wrong = {"role": "user", "content": _AGAIN.format(problem=problem)}
        messages = (*self.messages[:QUESTION_MESSAGES], *said, wrong)
        return PairQuestion(pair=self.pair, messages=messages, number=self.number + 1)


def question_of(pair: tuple[str, str], lang: str | None) -> PairQuestion:
    """Return what is asked of a market in a geography.

    Args:
        lang: ``es`` or ``en``, the language of descriptions; None leaves it to the model.
    """
    market, geography = pair
    language = _IN_LANGUAGE.get(lang or "", "")
    question = _QUESTION.format(market=market, geography=geography, language=language)
    messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": question})
    return PairQuestion(pair=pair, messages=messages)


def _judged(ask: PairQuestion, outcome: Outcome) -> tuple[Finding, str | None]:
    """Return what came of `ask`, and the answer's text; None if there was no answer."""
    market, geography = ask.pair
    result = outcome.result
    if result is None:
        return Finding(market=market, geography=geography, error=one_line(outcome.error)), None
    text, model = result.get("output"), str(result.get("model") or "")
    if not isinstance(text, str) or not text:
        error = "the answer has no text"
        return Finding(market=market, geography=geography, error=error, model=model), ""
    try:
        niches = list(niches_in(text))
    except BackendAnswerError as error:
        problem = one_line(str(error))
        found = Finding(market=market, geography=geography, error=problem, model=model)
        return found, text
    return Finding(market=market, geography=geography, niches=niches, model=model), text


# --- keeping and showing --------------------------------------------------------------


def _show(folder: Path, plan: NichePlan, findings: Findings, *, is_json: bool) -> None:
    pairs = plan.pairs
    found = sum(findings.is_found(pair) for pair in pairs)
    unusable = sum(findings.is_unusable(pair) for pair in pairs)
    left = len(pairs) - found - unusable
    ranking = findings.ranking()
    if is_json:
        top = [
            {"market": market, "geography": geography, "niche": niche.name,
             "opportunity": niche.opportunity}
            for market, geography, niche in ranking[:SHOWN]
        ]  # fmt: skip
        counts = {"pairs": len(pairs), "found": found, "unusable": unusable}
        counts["unanswered"] = left
        say(as_json({"folder": str(folder), **counts, "niches": len(ranking), "top": top}))
        return
    rows = [
        (f"{niche.opportunity:.1f}", *(f"{getattr(niche, score):g}" for score in SCORES),
         one_line(niche.name), one_line(f"{market}, {geography}"))
        for market, geography, niche in ranking[:SHOWN]
    ]  # fmt: skip
    columns = [tr(name) for name in ("opportunity", *SCORES, "niche", "market, geography")]
    for line in lines_of(columns, rows, width=width()) if rows else ():
        say(line)
    told = tr(
        "{pairs} pairs: {found} found, {unusable} unusable, {left} unanswered; {count} niches",
        pairs=len(pairs),
        found=found,
        unusable=unusable,
        left=left,
        count=len(ranking),
    )
    say(told)
    say(tr("saved in {folder}: {files}", folder=folder, files=", ".join(FILES)))
    if found < len(pairs):
        say(tr("to go on: the same command with --output {folder}", folder=folder))
