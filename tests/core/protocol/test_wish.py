"""What a task wishes for, as a text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.wish import NO_WISH, Cloud, Wish, is_place, lane_part, parse_wish
from d8mesh.errors import InvalidTaskError

_NAME = st.from_regex(r"\A[a-z0-9_][a-z0-9_.:/-]{0,20}\Z")
_WISHES = st.builds(
    Wish,
    models=st.lists(_NAME, max_size=4).map(tuple),
    is_strict=st.booleans(),
    cloud=st.none() | st.sampled_from(Cloud),
    needs=st.frozensets(st.sampled_from(["tools", "vision", "insert"])),
    machine=st.just("") | _NAME,
    conversation=st.just("") | st.from_regex(r"\A[0-9a-f]{8}\Z"),
    prompt_tokens=st.integers(0, 10**9),
    output_tokens=st.integers(0, 10**9),
)


@given(_WISHES)
def test_a_wish_is_read_as_it_was_written(wish: Wish) -> None:
    assert parse_wish(wish.text()) == wish


@given(_WISHES)
def test_what_only_helps_to_choose_is_not_of_the_lane(wish: Wish) -> None:
    lane = parse_wish(lane_part(wish.text()))
    assert (lane.conversation, lane.prompt_tokens, lane.output_tokens) == ("", 0, 0)
    assert (lane.models, lane.is_strict, lane.cloud) == (wish.models, wish.is_strict, wish.cloud)


@given(st.text(max_size=60))
def test_any_text_is_some_wish(text: str) -> None:
    parse_wish(text)


def test_the_texts_of_before_mean_what_they_meant() -> None:
    assert parse_wish("") == NO_WISH
    assert NO_WISH.text() == ""
    assert parse_wish("m:1b") == Wish(models=("m:1b",))
    assert parse_wish("=m:1b") == Wish(models=("m:1b",), is_strict=True)


def test_a_wish_that_cannot_travel_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="more than 1000 characters"):
        Wish(models=("m" * 128,) * 10).text()


def test_a_place_is_a_line_of_text_without_the_marks_of_a_wish() -> None:
    assert is_place("pi 5:11434")
    assert not any(map(is_place, ("", " pi", "a;b", "a#b", "a|b", "a\nb", "x" * 129, 5, None)))
