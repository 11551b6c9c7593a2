"""The options of a request to Ollama, as a task has them."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.protocol.chat import LOAD_OPTIONS
from d8mesh.doors.ollama.options import options_in
from d8mesh.errors import InvalidTaskError


def options(**told: Any) -> Any:
    return options_in({"options": told})


def test_options_of_a_request_go_on_and_no_null_does() -> None:
    told = {"seed": -1, "top_k": 5, "top_p": 0.5, "stop": ["a", "b"], "num_keep": None}
    assert options(**told).data == {"options": {k: v for k, v in told.items() if v is not None}}


def test_one_text_to_stop_at_is_a_list_of_one() -> None:
    assert options(stop="END").data == {"options": {"stop": ["END"]}}


@pytest.mark.parametrize("bound", [-1, -2, 0])
def test_no_bound_of_tokens_is_none(bound: int) -> None:
    assert options(num_predict=bound).data == {}


def test_a_bound_of_tokens_is_the_tasks() -> None:
    assert options(num_predict=5.0).data == {"max_tokens": 5}


def test_a_temperature_is_the_tasks_and_one_beyond_its_bounds_is_told() -> None:
    assert options(temperature=0).data == {"temperature": 0}
    asked = options(temperature=3.5)
    assert asked.data == {"temperature": 2}
    assert asked.ignored == ("options.temperature=3.5, which is beyond 2",)


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
def test_what_would_load_the_model_anew_is_named_and_not_applied(name: str) -> None:
    asked = options(**{name: True if name == "use_mmap" else 1})
    assert asked.data == {}
    assert asked.ignored == (f"options.{name}",)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"seed": "1"}, "integer"),
        ({"seed": 1.5}, "integer"),
        ({"top_k": True}, "integer"),
        ({"temperature": "hot"}, "float32"),
        ({"use_mmap": 1}, "boolean"),
        ({"stop": [1]}, r"\[\]string"),
        ({"num_ctx": "large"}, "integer"),
    ],
)
def test_a_wrong_type_is_refused_by_name(told: dict[str, Any], kind: str) -> None:
    (name,) = told
    with pytest.raises(InvalidTaskError, match=f'option "{name}" must be of type {kind}'):
        options(**told)


def test_options_that_are_no_object_are_refused() -> None:
    with pytest.raises(InvalidTaskError, match="options: expected an object"):
        options_in({"options": [1]})
