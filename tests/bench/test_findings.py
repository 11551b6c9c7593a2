"""Tables of samples: kept whole, told in medians, compared round by round."""

from __future__ import annotations

from bench.findings import Findings, findings_of, middle, percentile, ratios, rotated


def test_findings_survive_their_json() -> None:
    found = Findings()
    table = found.table("rates", "tasks/s")
    for value in (3.0, 1.0, 2.0):
        table.add("ours", "64 B", value)
    table.add("raw", "64 B", 4.0)
    found.series["ours"] = [0.1, 0.2]
    found.note("beside other work")
    found.note("beside other work")
    again = findings_of(found.as_json())
    assert again.as_json() == found.as_json()
    assert again.tables[0].samples("ours", "64 B") == [3.0, 1.0, 2.0]
    assert found.as_json()["tables"][0]["cells"][0]["median"] == 2.0
    assert again.notes == ["beside other work"]


def test_rows_and_columns_keep_the_order_of_their_first_sample() -> None:
    table = Findings().table("t", "ms")
    for row, column in (("b", "y"), ("a", "y"), ("b", "x")):
        table.add(row, column, 1.0)
    assert (table.rows, table.columns) == (["b", "a"], ["y", "x"])
    assert table.samples("a", "x") == []


def test_each_is_the_first_once() -> None:
    assert [rotated("abc", turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated("abc", 2)) == ["a", "b", "c"]
    assert rotated([], 1) == []


def test_ratios_are_those_of_each_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert ratios([2.0], [0.0]) == []


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.5) == 7.0
    assert middle([]) is None
