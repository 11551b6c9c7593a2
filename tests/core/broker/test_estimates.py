"""How long requests, and lines of them, are expected to take."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.broker.estimates import Weighed, line_done_s
from tests.core.llm_services import model, service
from tests.core.service_tables import (
    NOW,
    asked,
    at,
    fill,
    speedy,
    table_of,
    taken,
    wish,
)


def test_speeds_that_nobody_has_measured_are_those_of_others_or_of_the_size() -> None:
    table = table_of(speedy("known", 50.0), speedy("new", 0.0, prompt_tokens_per_s=0.0))
    choice = asked(table, wish("m"))
    assert {round(each.estimate_s, 3) for each in choice.weighed} == {2.0}
    bare: dict[str, Any] = {"prompt_tokens_per_s": 0.0, "requests": 0, "prompt_tokens": 0}
    sizes = {"small": 1_000_000_000, "large": 10_000_000_000, "untold": 0}
    table = table_of(
        *(
            service(name, [model(name, output_tokens_per_s=0.0, size_bytes=size, **bare)])
            for name, size in sizes.items()
        )
    )
    found = {each.model.name: each.estimate_s for each in asked(table, wish()).weighed}
    assert found["small"] < found["untold"] < found["large"]


def test_a_short_answer_is_expected_to_be_short_and_a_long_one_no_longer_than_others() -> None:
    table = table_of(speedy("a", 100.0))
    expected = [
        asked(table, wish("m", output_tokens=tokens)).weighed[0].estimate_s
        for tokens in (10, 100, 100_000)
    ]
    assert [round(each, 2) for each in expected] == [0.1, 1.0, 1.0]


def test_what_requests_really_took_counts() -> None:
    table = table_of(speedy("a", 100.0), speedy("b", 100.0))
    at(table, "a").pace, at(table, "a").is_pace_measured = 3.0, True
    assert taken(table, wish("m")) == "b/m"
    fresh: dict[str, Any] = {"prompt_tokens_per_s": 0.0}
    table = table_of(speedy("a", 0.0, **fresh), speedy("b", 0.0, **fresh))
    at(table, "a").pace = 0.5
    first, second = (each.estimate_s for each in asked(table, wish("m")).weighed)
    assert first == second  # nothing else is known of the other


def test_a_line_is_through_as_its_slots_are() -> None:
    table = table_of(speedy("a", 100.0, slots=2), speedy("b", 50.0, slots=2))
    weighed = asked(table, wish("m")).weighed
    assert line_done_s([], 1, NOW) == float("inf")
    assert line_done_s(weighed, 4, NOW) == pytest.approx(2.0)
    assert line_done_s(weighed, 5, NOW) == pytest.approx(2.0)
    assert line_done_s(weighed, 300, NOW) == pytest.approx(100.0, rel=0.02)
    fill(table, "a", 2, expected_s=30.0)
    fill(table, "b", 2, expected_s=30.0)
    assert line_done_s(weighed, 1, NOW) == pytest.approx(31.0)
    assert line_done_s(weighed, 300, NOW) == pytest.approx(130.0, rel=0.02)


def test_one_that_is_being_loaded_works_on_the_line_from_then_on() -> None:
    table = table_of(speedy("a", 100.0, is_loaded=False, slots=2, load_s=8.0))
    (each,) = asked(table, wish("m")).weighed
    at(table, "a").load(8.0, NOW)
    assert line_done_s([each], 2, NOW + 3.0) == pytest.approx(6.0)
    assert line_done_s([each], 2, NOW + 9.0) == pytest.approx(10.0)  # late: once more


def test_weighed_tells_loading_apart() -> None:
    table = table_of(speedy("a", 100.0))
    assert Weighed(at(table, "a"), None, estimate_s=9.0, run_s=1.0).load_s == 8.0
