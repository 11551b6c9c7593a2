"""Who asks at a door of language models."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY
from d8mesh.doors.llm.asked import Caller
from d8mesh.doors.llm.callers import MAX_PROGRAM_CHARS, caller_of
from d8mesh.errors import InvalidTaskError
from d8mesh.http.routes import Request
from tests.http.calls import scope_of


def asked_with(**headers: str) -> Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return caller_of(Request(scope_of("POST", "/chat", peer="10.0.0.7", headers=named)), "plain")


def test_a_request_without_headers_comes_from_somebody_who_waits() -> None:
    assert asked_with() == Caller(door="plain", address="10.0.0.7", priority=INTERACTIVE_PRIORITY)


def test_headers_say_who_asks_and_how() -> None:
    caller = asked_with(
        user_agent="app/1\t" + "x" * 500,
        x_d8_priority="3",
        idempotency_key="once",
        x_d8_models="a:1b, b",
    )
    assert caller.program.startswith("app/1xxx")
    assert len(caller.program) == MAX_PROGRAM_CHARS
    assert (caller.priority, caller.key, caller.fallbacks) == (3, "once", ("a:1b", "b"))


@pytest.mark.parametrize(
    ("headers", "priority"),
    [
        ({"authorization": "Bearer key;priority=10"}, 10),
        ({"x_api_key": "key;priority=1"}, 1),
        ({"authorization": "Bearer key"}, INTERACTIVE_PRIORITY),
        ({"authorization": "Bearer key;priority=2", "x_d8_priority": "5"}, 5),
    ],
)
def test_a_key_may_carry_the_priority_which_a_header_overrides(
    headers: dict[str, str], priority: int
) -> None:
    assert asked_with(**headers).priority == priority


@pytest.mark.parametrize(
    "headers",
    [
        {"x_d8_priority": "0"},
        {"x_d8_priority": "eleven"},
        {"authorization": "Bearer key;priority=11"},
        {"idempotency_key": "k" * 129},
        {"x_d8_models": ",".join(map(str, range(16)))},
    ],
)
def test_a_header_that_is_not_what_it_must_be_is_refused_and_no_key_is_repeated(
    headers: dict[str, str],
) -> None:
    with pytest.raises(InvalidTaskError) as refused:
        asked_with(**headers)
    assert "Bearer" not in str(refused.value)
    assert "kkk" not in str(refused.value)
