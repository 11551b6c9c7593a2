"""Questions that agents are scored by, and what is right as an answer.

An answer is right when it contains, equals or matches what was expected, or is JSON of a form;
or a model of the mesh judges it by a rubric, from 0 to 10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from d8mesh.apps.json_form import misfit, schema_fault
from d8mesh.edge.input_file import read_input
from d8mesh.errors import ConfigError
from d8mesh.handlers.thoughts import without_thoughts

#: Every genome is asked all of them.
MAX_QUESTIONS: Final = 10_000
#: Of an answer so much is compared, and seen by the judge.
MAX_ANSWER_SEEN_CHARS: Final = 20_000
CHECKS: Final = ("contains", "equals", "regex", "schema", "rubric")
#: A judge's best mark.
MAX_MARK: Final = 10
JUDGE_TOKENS: Final = 300
MARK_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "why": {"type": "string", "minLength": 1, "maxLength": 200},
        "mark": {"type": "integer", "minimum": 0, "maximum": MAX_MARK},
    },
    "required": ["why", "mark"],
    "additionalProperties": False,
}
QUESTIONS_EXPECTED: Final = (
    'expected [{"question": "…", "contains": "…"}], with one of ' + ", ".join(CHECKS)
)
_JUDGE: Final = (
    "You mark answers strictly. You answer with one JSON object and nothing else: "
    '{"why": "one short sentence", "mark": a whole number from 0 (worst) to 10 (best)}.'
)
_JUDGED: Final = """Question: {question}

Answer to mark:
<answer>
{answer}
</answer>

What is a good answer: {rubric}"""

_QuestionText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=20_000)]


class AgentQuestion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question with exactly one of the checks of its answer."""

    question: _QuestionText
    contains: _QuestionText | list[_QuestionText] | None = None
    equals: _QuestionText | None = None
    regex: _QuestionText | None = None
    schema: dict[str, Any] | None = None
    rubric: _QuestionText | None = None
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0

    @property
    def check(self) -> str:
        """The name of its check."""
        return next(name for name in CHECKS if getattr(self, name) is not None)

    @property
    def expected(self) -> str:
        """What is expected, for people."""
        value = getattr(self, self.check)
        texts = value if isinstance(value, list) else [value]
        return ", ".join(each if isinstance(each, str) else json.dumps(each) for each in texts)

    def fault(self) -> str:
        """Return why it can't be asked; "" if it can."""
        given = [name for name in CHECKS if getattr(self, name) is not None]
        if len(given) != 1:
            return f"expected one of {', '.join(CHECKS)}, not {', '.join(given) or 'none'}"
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                return f"regex: {error}"
        return "" if self.schema is None else schema_fault(self.schema)

    def points(self, answer: str) -> float:
        """Return 1 for a right answer and 0 for a wrong one; not for a question with a rubric."""
        text = without_thoughts(answer[:MAX_ANSWER_SEEN_CHARS]).strip()
        if self.contains is not None:
            wanted = [self.contains] if isinstance(self.contains, str) else self.contains
            return float(all(_plain(each) in _plain(text) for each in wanted))
        if self.equals is not None:
            return float(_plain(text) == _plain(self.equals))
        if self.regex is not None:
            return float(re.search(self.regex, text) is not None)
        assert self.schema is not None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        return float(not misfit(value, self.schema))

    def judge_data(self, answer: str, model: str) -> dict[str, Any]:
        """Return the task data that has `answer` marked by its rubric."""
        text = without_thoughts(answer[:MAX_ANSWER_SEEN_CHARS]).strip()
        asked = _JUDGED.format(question=self.question, answer=text, rubric=self.rubric)
        data: dict[str, Any] = {
            "messages": [
                {"role": "system", "content": _JUDGE},
                {"role": "user", "content": asked},
            ],
            "format": MARK_SCHEMA,
            "temperature": 0,
            "max_tokens": JUDGE_TOKENS,
        }
        return data | ({"model": model, "model_strict": True} if model else {})


class _Mark(Struct, frozen=True):
    mark: Annotated[float, Meta(ge=0, le=MAX_MARK)]


def mark_in(text: str) -> float:
    """Return the points, from 0 to 1, that a judge's answer gives.

    Raises:
        ValueError: it gives none.
    """
    try:
        found = msgspec.json.decode(without_thoughts(text).strip().encode(), type=_Mark)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValueError(f"the judge gave no mark: {error}") from error
    return found.mark / MAX_MARK


class _QuestionSet(Struct, frozen=True, forbid_unknown_fields=True):
    questions: list[AgentQuestion]


def read_questions(file: Path) -> tuple[AgentQuestion, ...]:
    """Return the questions of a JSON, YAML or CSV file.

    Raises:
        ConfigError: the file can't be read, or a question can't be asked.
    """
    whole = read_input(
        file,
        list[AgentQuestion] | _QuestionSet,  # type: ignore[arg-type]  # msgspec takes unions
        option="--questions",
        expected=QUESTIONS_EXPECTED,
        from_rows=_from_rows,
    )
    questions = whole.questions if isinstance(whole, _QuestionSet) else whole
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        raise ConfigError(
            f"--questions {file}: {len(questions)} questions, expected 1 to {MAX_QUESTIONS}"
        )
    for number, question in enumerate(questions, 1):
        if fault := question.fault():
            raise ConfigError(f"--questions {file}: question {number}: {fault}")
    return tuple(questions)


def _from_rows(rows: list[dict[str, str]]) -> list[Mapping[str, object]]:
    """Return the rows of a table with the cells that are filled; a schema is JSON in its cell."""
    found: list[Mapping[str, object]] = []
    for row in rows:
        filled: dict[str, object] = {name: cell for name, cell in row.items() if cell}
        if "schema" in filled:
            filled["schema"] = json.loads(row["schema"])
        if filled:
            found.append(filled)
    return found


def _plain(text: str) -> str:
    """Return `text` without what does not matter: case, spaces, a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".!").strip()
