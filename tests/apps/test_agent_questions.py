"""Questions are read from files, and answers are compared with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d8mesh.apps.agent_questions import AgentQuestion, mark_in, read_questions
from d8mesh.errors import ConfigError
from d8mesh.handlers.chat_fields import agent_request


@pytest.mark.parametrize(
    ("check", "answer", "points"),
    [
        ({"contains": "paris"}, "It is PARIS, of course.", 1),
        ({"contains": ["red", "blue"]}, "red and  Blue", 1),
        ({"contains": ["red", "blue"]}, "red", 0),
        ({"equals": "blue"}, " Blue.\n", 1),
        ({"equals": "blue"}, "it is blue", 0),
        ({"equals": "blue"}, "<think>red?</think>blue", 1),
        ({"regex": r"^\d+$"}, "42", 1),
        ({"regex": r"^\d+$"}, "about 42", 0),
        ({"schema": {"type": "array"}}, "[1]", 1),
        ({"schema": {"type": "array"}}, "{}", 0),
        ({"schema": {"type": "array"}}, "here: [1]", 0),
    ],
)
def test_an_answer_is_right_or_wrong(check: dict[str, Any], answer: str, points: float) -> None:
    question = AgentQuestion(question="?", **check)
    assert question.fault() == ""
    assert question.points(answer) == points
    assert question.expected


def test_a_judge_is_asked_with_the_rubric_and_gives_a_mark() -> None:
    question = AgentQuestion(question="Why?", rubric="names a reason")
    data = question.judge_data("because", "judge:7b")
    agent_request(data)  # or it raises
    assert "names a reason" in data["messages"][1]["content"]
    assert (data["model"], data["model_strict"]) == ("judge:7b", True)
    assert mark_in('{"why": "so", "mark": 7}') == 0.7
    for bad in ("7", '{"mark": 11}', "", '{"mark": "good"}', "\ud800"):
        with pytest.raises(ValueError, match="the judge gave no mark"):
            mark_in(bad)


WHOLE = """{"questions": [{"question": "a?", "contains": "x"},
{"question": "b?", "regex": "y"}]}"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.json", '[{"question": "a?", "contains": "x"}, {"question": "b?", "regex": "y"}]'),
        ("q.json", WHOLE),
        ("q.yaml", "- {question: 'a?', contains: x}\n- {question: 'b?', regex: y}\n"),
        ("q.csv", "question,contains,regex\na?,x,\nb?,,y\n"),
    ],
)  # fmt: skip
def test_questions_are_read_from_json_yaml_and_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    one, two = read_questions(tmp_path / name)
    assert (one.question, one.check, one.expected) == ("a?", "contains", "x")
    assert (two.question, two.check, two.expected) == ("b?", "regex", "y")


def test_a_table_may_hold_weights_and_schemas(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text('question;schema;weight\na?;"{""type"": ""array""}";2\n', "utf-8")
    (one,) = read_questions(file)
    assert (one.check, one.weight) == ("schema", 2.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "0 questions"),
        ('[{"question": "a?"}]', "question 1: expected one of .*, not none"),
        ('[{"question": "a?", "regex": "x", "equals": "x"}]', "not equals, regex"),
        ('[{"question": "a?", "regex": "("}]', "question 1: regex: "),
        ('[{"question": "a?", "schema": {"oneOf": []}}]', "oneOf is not known here"),
        ('[{"question": "a?", "answer": "x"}]', "answer"),
        ("nothing", "expected"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "q.json"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"--questions .*{problem}"):
        read_questions(file)
