"""The header that names what of a request has no effect."""

from __future__ import annotations

from d8mesh.doors.llm.ignored import (
    IGNORED_FIELDS_HEADER,
    MAX_TOLD_FIELD_CHARS,
    MAX_TOLD_FIELDS,
    ignored_fields_header,
)


def told(*names: str) -> str:
    return ignored_fields_header(names)[IGNORED_FIELDS_HEADER]


def test_each_name_is_told_once_in_order() -> None:
    assert told("store", "user", "store") == "store, user"


def test_nothing_ignored_is_no_header() -> None:
    assert ignored_fields_header([]) == {}


def test_a_header_is_of_plain_characters_and_bounded() -> None:
    assert told("a\r\nX-Evil: 1é") == "aX-Evil: 1"
    assert len(told("x" * 999)) == MAX_TOLD_FIELD_CHARS
    assert told(*map(str, range(MAX_TOLD_FIELDS + 2))).endswith(", and 2 more")
