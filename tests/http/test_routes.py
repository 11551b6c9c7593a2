"""Whose calls end with their caller."""

from __future__ import annotations

import pytest

from d8mesh.http.answers import Response, answer
from d8mesh.http.request import Request
from d8mesh.http.routes import Route


async def call(request: Request) -> Response:
    return answer({})


@pytest.mark.parametrize(
    ("method", "ends", "runs_on"),
    [
        ("GET", None, False),
        ("POST", None, True),
        ("GET", False, True),
        ("POST", True, False),
    ],
)
def test_what_changes_something_runs_on_unless_it_says_so(
    method: str, ends: bool | None, runs_on: bool
) -> None:
    assert Route(rule="/", call=call, method=method, ends_with_caller=ends).runs_on is runs_on
