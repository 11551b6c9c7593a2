"""How a model is to generate."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.openai.fields import RequestFields
from d8mesh.doors.openai.sampling import choices_of, sampling_of, several
from d8mesh.errors import InvalidTaskError


def sampled(**fields: Any) -> dict[str, Any]:
    return sampling_of(RequestFields(fields))[0]


def test_what_is_absent_is_left_to_the_model() -> None:
    assert sampled() == {}
    assert sampled(temperature=None, top_p=None, max_tokens=None, stop=[]) == {}


def test_the_newer_name_of_the_bound_wins() -> None:
    assert sampled(max_tokens=9, max_completion_tokens=5) == {"max_tokens": 5}
    assert sampled(max_tokens=9, max_completion_tokens=None) == {"max_tokens": 9}
    assert sampled(max_tokens=-1) == {}


def test_every_field_of_both_interfaces_is_handed_on() -> None:
    fields = {
        "temperature": 0, "top_p": 0.5, "min_p": 0.1, "top_k": 40, "seed": 7, "keep_alive": "5m",
        "frequency_penalty": -1, "presence_penalty": 1, "repeat_penalty": 1.1, "truncate": False,
    }  # fmt: skip
    assert sampled(**fields) == fields
    assert sampled(repetition_penalty=1.2) == {"repeat_penalty": 1.2}


def test_stop_is_a_text_or_several() -> None:
    assert sampled(stop="END") == {"stop": ["END"]}
    assert sampled(stop=["a", "", "b"]) == {"stop": ["a", "b"]}


def test_options_are_taken_but_for_what_is_said_beside_them_or_loads_the_model_anew() -> None:
    fields = RequestFields(
        {
            "temperature": 1,
            "max_tokens": 3,
            "options": {
                "temperature": 0, "num_predict": 5, "num_ctx": 4096, "typical_p": 0.5, "top_p": 1,
            },
        }
    )  # fmt: skip
    data, ignored = sampling_of(fields)
    assert data == {
        "temperature": 1,
        "max_tokens": 3,
        "options": {"typical_p": 0.5, "top_p": 1},
    }
    assert ignored == {"options.temperature", "options.num_predict", "options.num_ctx"}


def test_each_of_several_answers_has_a_seed_of_its_own() -> None:
    assert choices_of(RequestFields({"n": 3})) == 3
    assert [each["seed"] for each in several({"seed": 7}, 3)] == [7, 8, 9]
    assert several({"top_p": 1}, 2) == [{"top_p": 1}] * 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 3}, "temperature: expected a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature: expected a number"),
        ({"top_p": 2}, "top_p: expected a number from 0 to 1"),
        ({"frequency_penalty": 3}, "frequency_penalty: expected a number from -2 to 2"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number from 1"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens: expected a whole number"),
        ({"seed": "x"}, "seed: expected a whole number"),
        ({"stop": 5}, "stop: expected a text, or a list"),
        ({"stop": ["x"] * 65}, "stop: expected a text, or a list of at most 64"),
        ({"options": []}, "options: expected an object"),
    ],
)
def test_what_is_out_of_bounds_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        sampled(**fields)
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize("n", [0, 17, "2", 1.5])
def test_a_number_of_answers_is_1_to_16(n: Any) -> None:
    with pytest.raises(InvalidTaskError, match="n: expected a whole number from 1 to 16"):
        choices_of(RequestFields({"n": n}))
