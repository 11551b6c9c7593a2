"""echo gives its data back."""

from __future__ import annotations

from d8mesh.handlers.echo import echo
from tests.task_context import Context


def test_echo_gives_its_data_as_output() -> None:
    assert echo({"a": [1, {"b": None}]}, Context()) == {
        "success": True,
        "output": {"a": [1, {"b": None}]},
    }


def test_echo_of_data_that_looks_like_a_result_is_still_an_output() -> None:
    assert echo({"success": False}, Context()) == {"success": True, "output": {"success": False}}
