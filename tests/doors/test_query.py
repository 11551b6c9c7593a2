"""What stands behind the question mark of an address is checked."""

from __future__ import annotations

import pytest

from d8mesh.doors.query import flag, integer, seconds
from d8mesh.errors import InvalidTaskError


def test_numbers_of_a_query_are_checked() -> None:
    assert seconds({}, "wait", default=30, most=60) == 30
    assert seconds({"wait": "1.5"}, "wait", default=0, most=60) == 1.5
    assert seconds({"wait": "900"}, "wait", default=0, most=60, is_cut=True) == 60
    for bad in ("-1", "nan", "x", "", "1e999", "٣", "61", "1_0"):
        with pytest.raises(InvalidTaskError, match="wait: "):
            seconds({"wait": bad}, "wait", default=0, most=60)
    assert integer({"limit": "7"}, "limit", default=100, most=1000) == 7
    for bad in ("0", "1001", "-1", "1.5", "٣", "", "9" * 30):
        with pytest.raises(InvalidTaskError, match="limit: "):
            integer({"limit": bad}, "limit", default=100, most=1000)
    assert [flag({"full": text}, "full") for text in ("1", "true", "0", "")] == [1, 1, 0, 0]
    assert flag({}, "full") is False
    with pytest.raises(InvalidTaskError, match="full: "):
        flag({"full": "maybe"}, "full")
