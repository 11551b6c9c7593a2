"""Tables and lines for terminals of any width."""

from __future__ import annotations

import pytest

from d8mesh.apps.tables import cut, lines_of, shown_width, wrapped

COLUMNS = ("name", "what", "note")
ROWS = [("one", "a\x1b[31mred", ""), ("zwei", "b", "x" * 30)]


def test_columns_stand_below_their_names_and_nothing_drives_the_terminal() -> None:
    head, first, second = lines_of(COLUMNS, ROWS, width=None)
    assert first.index("a\\x1b") == head.index("what")
    assert second.index("xxx") == head.index("note")
    assert first == first.rstrip()


@pytest.mark.parametrize("width", [20, 30, 45])
def test_what_does_not_fit_becomes_blocks_that_do(width: int) -> None:
    rows = list(lines_of(COLUMNS, [*ROWS, ("e", "word " * 20, "")], width=width, indent="  "))
    assert max(map(shown_width, rows)) <= width
    assert [row for row in rows if row in ("  one", "  zwei", "  e")] == ["  one", "  zwei", "  e"]
    assert "".join("".join(rows).split()).count("word") == 20


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert shown_width("日本") == 4
    assert shown_width("e\u0301") == 1
    assert cut("日本語", 4) == "日…"
    assert cut("short", 5) == "short"
    head, row, other = lines_of(("a", "b"), [("日本", "x"), ("four", "y")], width=None)
    assert (head.index("b"), row.index("x"), other.index("y")) == (6, 4, 6)


def test_lines_are_wrapped_but_addresses_are_not_broken() -> None:
    url = "http://192.168.100.200:7001/health"
    assert wrapped(f"look at {url} now", 20) == ["look at", f"  {url}", "  now"]
    counts = "tasks: 1000 pending, 20 assigned, 0 cancelled"
    for width in range(20, 50):
        lines = wrapped(counts, width)
        assert " ".join(line.strip() for line in lines) == counts
        assert not any(line.endswith(("1000", "20", "0")) for line in lines)
    assert wrapped("all of it " * 20, None) == ["all of it " * 20]
