"""What Niche Discovery is to ask, from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d8mesh.apps.niche_plan import read_plan
from d8mesh.errors import ConfigError


def test_a_file_gives_markets_and_geographies_and_each_pair_once(tmp_path: Path) -> None:
    file = tmp_path / "markets.json"
    content = '{"markets": ["pets", " pets ", "ñandú"], "geographies": ["Perú"]}'
    file.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_plan(file).pairs == [("pets", "Perú"), ("ñandú", "Perú")]


def test_without_a_file_there_are_defaults() -> None:
    assert len(read_plan(None).pairs) == 15


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "not json",
        '{"markets": ["a"]}',
        '{"markets": [], "geographies": ["a"]}',
        '{"markets": "a", "geographies": ["a"]}',
        '{"markets": [1], "geographies": ["a"]}',
        '{"markets": [" "], "geographies": ["a"]}',
        '{"markets": ["a"], "geographies": ["b"], "other": 1}',
        json.dumps({"markets": ["x" * 201], "geographies": ["a"]}),
        "[" * 100_000,
        "\xff\xfe",
    ],
)
def test_a_wrong_file_says_what_was_expected(tmp_path: Path, content: str) -> None:
    file = tmp_path / "markets.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r'expected \{"markets"'):
        read_plan(file)


def test_too_many_pairs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "markets.json"
    names = [str(i) for i in range(101)]
    file.write_text(json.dumps({"markets": names, "geographies": names}), "utf-8")
    with pytest.raises(ConfigError, match="10201 pairs, at most 10000"):
        read_plan(file)


@pytest.mark.parametrize("name", ["plan.yaml", "plan.YML"])
def test_markets_and_geographies_are_lists_of_yaml_too(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("# mine\nmarkets:\n  - pets\n  - ñandú\ngeographies: [Perú]\n", "utf-8")
    assert read_plan(file).pairs == [("pets", "Perú"), ("ñandú", "Perú")]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("markets: [pets\ngeographies: [Peru]\n", 2),
        ("markets:\n- pets\ngeographies:\n- Sweden\n- no\n", 5),
        ("markets: pets\ngeographies: [Peru]\n", 1),
    ],
)
def test_what_is_wrong_in_yaml_is_told_with_its_line(
    tmp_path: Path, content: str, line: int
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=f"plan.yaml, line {line}: .*; expected `markets:"):
        read_plan(file)


@pytest.mark.parametrize(
    "content",
    [
        "market,geography\npets,Spain\nbooks,Peru\npets,Peru\n",
        "\ufeffMarkets;Geographies;notes\r\npets;Spain;a, b\r\nbooks;Peru\r\n;\r\n",
        'geography,market\nSpain,"pets"\nPeru,books',
    ],
)
def test_a_table_gives_each_name_of_its_columns_once(tmp_path: Path, content: str) -> None:
    file = tmp_path / "plan.CSV"
    file.write_bytes(content.encode())
    assert sorted(read_plan(file).pairs) == [
        ("books", "Peru"), ("books", "Spain"), ("pets", "Peru"), ("pets", "Spain"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content", ["", "market,geography\n", "pets,Spain\n", "market\npets", "market,geography\na"]
)
def test_a_table_without_both_columns_says_what_was_expected(tmp_path: Path, content: str) -> None:
    file = tmp_path / "plan.csv"
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match="expected a first line `market,geography`"):
        read_plan(file)
