"""What a completion asks."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.openai.completion_request import asked_of_completion
from d8mesh.doors.openai.sampling import OWN_DEFAULTS
from d8mesh.errors import InvalidTaskError


def test_a_prompt_is_a_task() -> None:
    (task,) = asked_of_completion({"model": "m", "prompt": "once", "max_tokens": 16}).tasks
    assert (task.type, task.model) == ("generate", "m")
    assert task.data == {"prompt": "once", "max_tokens": 16, **OWN_DEFAULTS}


def test_each_prompt_has_as_many_tasks_as_answers() -> None:
    asked = asked_of_completion(
        {"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 1, "echo": True}
    )
    assert [(task.data["prompt"], task.data["seed"]) for task in asked.tasks] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip
    assert asked.echoes == ("a", "a", "b", "b")


@pytest.mark.parametrize(
    ("logprobs", "data"),
    [
        (None, {}),
        (0, {"logprobs": True, "top_logprobs": 0}),
        (3, {"logprobs": True, "top_logprobs": 3}),
        (True, {"logprobs": True}),
        (False, {}),
    ],
)
def test_how_likely_the_tokens_were_is_asked_for_by_a_number(
    logprobs: Any, data: dict[str, Any]
) -> None:
    (task,) = asked_of_completion({"model": "m", "prompt": "x", "logprobs": logprobs}).tasks
    assert task.data == {"prompt": "x", **data, **OWN_DEFAULTS}


def test_a_suffix_and_a_raw_prompt_are_handed_on() -> None:
    (task,) = asked_of_completion({"model": "m", "prompt": "x", "suffix": "y", "raw": True}).tasks
    assert task.data == {"prompt": "x", "suffix": "y", "raw": True, **OWN_DEFAULTS}


def test_what_has_no_effect_is_named() -> None:
    asked = asked_of_completion(
        {"model": "m", "prompt": "x", "best_of": 4, "user": "u", "logit_bias": {"50256": -100}}
    )
    assert asked.ignored == ("user", "best_of")
    assert asked.tasks[0].data["logit_bias"] == {"50256": -100}
    assert asked_of_completion({"model": "m", "prompt": "x", "n": 2, "best_of": 2}).ignored == ()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": None}, "Missing field: prompt"),
        ({"prompt": ""}, "prompt: expected a text that is not empty"),
        ({"prompt": []}, "prompt: expected a text, or a list of one or more texts"),
        ({"prompt": [1, 2]}, "prompt: expected a text, or a list of texts: tokens as numbers"),
        ({"prompt": [[1, 2]]}, "prompt: expected a text, or a list of texts: tokens as numbers"),
        ({"prompt": ["x"] * 129}, "prompt: 129 texts, at most 128"),
        ({"prompt": ["x"] * 64, "n": 3}, "n: expected at most 128 answers"),
        ({"logprobs": 21}, "logprobs: expected a whole number from 0 to 20"),
        ({"suffix": 5}, "suffix: expected a text"),
        ({"best_of": 0}, "best_of: expected a whole number from 1"),
        ({"echo": "yes"}, "echo: expected true or false"),
        ({"think": "huge"}, "think: expected"),
    ],
)
def test_what_is_wrong_is_told_at_once(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        asked_of_completion({"model": "m", "prompt": "x", **fields})
    assert str(raised.value).startswith(told)
