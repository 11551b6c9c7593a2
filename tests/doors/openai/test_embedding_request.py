"""Texts that are to become vectors."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.openai.embedding_request import asked_of_embedding
from d8mesh.errors import InvalidTaskError


def test_a_text_is_a_list_of_one() -> None:
    asked = asked_of_embedding({"model": "e", "input": "x", "dimensions": 8})
    (task,) = asked.tasks
    assert (task.type, task.data) == ("embed", {"input": ["x"], "dimensions": 8})
    assert not asked.is_base64


def test_many_texts_are_several_tasks_in_their_order() -> None:
    texts = [str(i) for i in range(2048)]
    asked = asked_of_embedding({"model": "e", "input": texts, "encoding_format": "base64"})
    assert [text for task in asked.tasks for text in task.data["input"]] == texts
    assert len(asked.tasks) == 8
    assert asked.is_base64


def test_what_has_no_effect_is_named() -> None:
    asked = asked_of_embedding(
        {"model": "e", "input": "x", "user": "u", "options": {"num_ctx": 5, "seed": 1}}
    )
    assert asked.ignored == ("user", "options.num_ctx")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"input": None}, "Missing field: input"),
        ({"input": []}, "input: expected a text, or a list of one or more texts"),
        ({"input": [1, 2]}, "input: expected a text, or a list of texts: tokens as numbers"),
        ({"input": [[1], [2]]}, "input: expected a text, or a list of texts: tokens as numbers"),
        ({"input": {"text": "x"}}, "input: expected a text, or a list"),
        ({"input": ["x"] * 2049}, "input: 2049 texts, at most 2048"),
        ({"encoding_format": "int8"}, "encoding_format: expected float or base64"),
        ({"encoding_format": ["float"]}, "encoding_format: expected float or base64"),
        ({"dimensions": 0}, "dimensions: expected a whole number from 1"),
        ({"model": ""}, "model: expected a text that is not empty"),
    ],
)
def test_what_is_wrong_is_told_at_once(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        asked_of_embedding({"model": "e", "input": "x", **fields})
    assert str(raised.value).startswith(told)
