"""The header that names fields without effect; `test_routes` asks over a real socket."""

from __future__ import annotations

from d8mesh.doors.openai.asking import IGNORED, ignored_header


def test_each_field_is_named_once() -> None:
    assert ignored_header(["user", "store", "user"]) == {IGNORED: "user, store"}
    assert ignored_header([]) == {}


def test_a_name_cannot_break_the_head() -> None:
    assert ignored_header(["a\r\nX-Evil: 1", "é😀b"]) == {IGNORED: "aX-Evil: 1, b"}


def test_of_many_names_some_are_told_and_the_others_counted() -> None:
    told = ignored_header([f"field_{n:03}" + "x" * 100 for n in range(40)])[IGNORED]
    assert told.endswith(", and 8 more")
    assert len(told) < 2500
