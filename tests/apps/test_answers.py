"""Niches are found in what models really answer, and only right ones."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d8mesh.apps.answers import NICHE_SCHEMA, SCORES, niches_in
from d8mesh.errors import BackendAnswerError

ROW: dict[str, Any] = {
    "name": "Repair cafés",
    "description": "Places to mend things.",
    "demand": 80,
    "growth": 60.5,
    "feasibility": 70,
    "competition": 30,
}
WHOLE = json.dumps({"niches": [ROW]})


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"```json\n{WHOLE}\n```",
        f"Sure! Here it is: {WHOLE} Hope that helps {{smile}}.",
        f'<think>Maybe {{"niches": []}}?</think>\n{WHOLE}',
        f"Maybe {WHOLE.replace('80', '1')}?\n</think>\n\n```json\r\n{WHOLE}\r\n```",
        f"{WHOLE} </think>",
        f"Scores [0-100] as {{asked}}: {WHOLE}",
        json.dumps([ROW]),
        json.dumps(ROW),
        json.dumps({"niches": [ROW | {"demand": "80"}]}),
        json.dumps({"niches": [{"name": "half a niche"}, ROW, 7]}),
        json.dumps({"notes": [1, 2]}) + WHOLE,
        json.dumps({"niches": [ROW | {"more": "ignored"}]}),
    ],
)
def test_a_niche_is_found(answer: str) -> None:
    (niche,) = niches_in(answer)
    assert (niche.name, niche.demand, niche.growth) == ("Repair cafés", 80, 60.5)
    assert niche.opportunity == 70.1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "no JSON object"),
        ("I cannot help with that.", "no JSON object"),
        (WHOLE[:-5], "no JSON object|form"),
        ('{"niches": []}', 'no list "niches"'),
        ('{"answer": 42}', 'no list "niches"'),
        (json.dumps({"niches": [ROW | {"demand": 101}]}), "demand"),
        (json.dumps({"niches": [ROW | {"growth": -1}]}), "growth"),
        (json.dumps({"niches": [ROW | {"name": ""}]}), "name"),
        (json.dumps({"niches": [ROW | {"name": 5}]}), "name"),
        (json.dumps({"niches": [{"name": "x"}]}), "missing required field"),
        (WHOLE.replace("80", "NaN"), "form|no JSON"),
        (WHOLE.replace("80", "9" * 10_000), "form|no JSON"),
        ("[" * 100_000, "no JSON object"),
        ("{" * 100_000, "no JSON object"),
    ],
)
def test_an_answer_without_niches_says_what_is_wrong(answer: str, said: str) -> None:
    with pytest.raises(BackendAnswerError, match=said):
        niches_in(answer)


def test_half_a_character_is_replaced() -> None:
    (niche,) = niches_in(WHOLE.replace("Repair", "\\ud800Repair"))
    assert niche.name == "?Repair cafés"


@settings(deadline=None)
@given(st.text() | st.recursive(st.text() | st.integers(), st.lists).map(json.dumps))
def test_no_answer_breaks_it(answer: str) -> None:
    with contextlib.suppress(BackendAnswerError):
        assert niches_in(answer)


_FORM: Any = NICHE_SCHEMA["properties"]["niches"]["items"]["properties"]


@given(
    name=st.from_regex(_FORM["name"]["pattern"], fullmatch=True),
    description=st.from_regex(_FORM["description"]["pattern"], fullmatch=True),
)
def test_whatever_keeps_to_the_schema_is_a_niche(name: str, description: str) -> None:
    for text, form in ((name, _FORM["name"]), (description, _FORM["description"])):
        assert form["minLength"] <= len(text) <= form["maxLength"]
        assert json.loads(f'"{text}"') == text
    row = {"name": name, "description": description, **dict.fromkeys(SCORES, 50)}
    (niche,) = niches_in(json.dumps({"niches": [row, row]}))
    assert (niche.name, niche.description) == (name, description)
