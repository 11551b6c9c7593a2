"""Findings survive on disk, and what models wrote is only data in every file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from d8mesh.apps.answers import Niche
from d8mesh.apps.findings import Finding, Findings, load, markdown, save, table
from d8mesh.errors import D8Error


def niche(name: str, *, demand: float = 50, description: str = "words") -> Niche:
    return Niche(
        name=name,
        description=description,
        demand=demand,
        growth=50,
        feasibility=50,
        competition=50,
    )


def found(market: str, *niches: Niche) -> Finding:
    return Finding(market=market, geography="Spain", niches=list(niches), model="m:1b")


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    findings = Findings([found("a", niche("ñ", demand=12.5)), found("b")])
    save(tmp_path, findings)
    assert load(tmp_path).all() == findings.all()
    assert {file.name for file in tmp_path.iterdir()} == {
        "niches.json",
        "niches.md",
        "niches.csv",
    }


def test_nothing_is_loaded_from_an_empty_folder(tmp_path: Path) -> None:
    assert load(tmp_path).all() == []


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"format": "other", "findings": []}', "\xff"]
)
def test_a_foreign_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "niches.json").write_text(content, encoding="latin-1")
    with pytest.raises(D8Error, match="choose another --output"):
        load(tmp_path)


def test_the_best_opportunity_comes_first() -> None:
    findings = Findings([found("a", niche("low", demand=1), niche("high", demand=99))])
    assert [row[2].name for row in findings.ranking()] == ["high", "low"]


def test_a_newer_finding_takes_the_place_of_the_older() -> None:
    findings = Findings([found("a")])
    assert findings.is_unusable(("a", "Spain"))
    findings.put(found("a", niche("x")))
    assert findings.is_found(("a", "Spain"))
    assert not findings.is_found(("a", "Peru"))
    assert len(findings.all()) == 1


def test_markdown_shows_what_a_model_wrote_as_text() -> None:
    text = markdown(Findings([found("a", niche("<b>|x\n# [y](z) \x1b[31m")), found("b|c")]))
    (row,) = [line for line in text.splitlines() if "&lt;b&gt;" in line]
    assert "\\|x \\# \\[y\\](z) \\[31m" in row
    assert "\x1b" not in text
    assert "- b\\|c, Spain" in text


def test_no_cell_of_the_csv_is_a_formula() -> None:
    text = table(Findings([found("a", niche('=HYPERLINK("http://x")', description='say "a,b"'))]))
    header, row = csv.reader(io.StringIO(text))
    cells = dict(zip(header, row, strict=True))
    assert cells["name"] == '\'=HYPERLINK("http://x")'
    assert (cells["description"], cells["model"]) == ('say "a,b"', "m:1b")
