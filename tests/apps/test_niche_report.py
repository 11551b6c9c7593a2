"""The report of Niche Discovery as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from d8mesh.apps import niche_report
from d8mesh.apps.answers import Niche
from d8mesh.apps.findings import Finding, Findings
from d8mesh.apps.niche_report import page

PAIRS = [("pets", "Spain"), ("pets", "Peru"), ("books", "Spain"), ("books", "Peru")]


def niche(name: str, demand: float = 80, **more: object) -> Niche:
    given = {"description": "Walks with dogs.", "growth": 60, "feasibility": 40, "competition": 20}
    return Niche(**{"name": name, "demand": demand, **given, **more})  # type: ignore[arg-type]


def found(market: str, geography: str, *niches: Niche) -> Finding:
    return Finding(market=market, geography=geography, niches=list(niches), model="m:1b")


class Tags(HTMLParser):
    """Collects the tags of a page, and what stands between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def told(findings: Findings) -> str:
    return " ".join(Tags(page(findings, PAIRS, lang="en")).text.split())


def test_it_says_how_far_the_run_came_and_what_its_numbers_mean() -> None:
    text = told(Findings([found("pets", "Spain", niche("Dog walks"))]))
    assert "4 pairs: 1 found, 0 unusable, 3 unanswered; 1 niches; answered by m:1b" in text
    assert "The opportunity is (demand + growth + feasibility + 100 − competition) / 4" in text
    assert "no market study" in text


def test_the_best_opportunity_comes_first_and_each_pair_has_its_mean() -> None:
    findings = [
        found("pets", "Spain", niche("Dog walks", 20), niche("Cat hotel", 100)),
        found("books", "Peru", niche("Poems", 60)),
    ]
    text = told(Findings(findings))
    assert text.index("Cat hotel pets, Spain 70.0") < text.index("Poems books, Peru 60.0")
    assert "Peru Spain books 60.0 – pets – 60.0" in text  # the mean of 70 and 50


def test_unusable_answers_are_named_with_their_reason() -> None:
    text = told(Findings([Finding(market="pets", geography="Peru", error="no JSON in it")]))
    assert "Unusable pets, Peru: no JSON in it" in text


def test_what_a_model_wrote_is_text_and_the_page_loads_nothing() -> None:
    evil = "<script src=https://e.example/x.js></script><img onerror='x'>\x1b[2J\u202e"
    findings = [found(evil, evil, niche("a" + evil, description="b" + evil))]
    written = page(Findings(findings), [(evil, evil)], lang='"><b>')
    seen = Tags(written)
    assert not {"script", "img", "link", "iframe", "b>"} & set(seen.tags)
    assert not {"src", "href", "onerror"} & set(seen.attributes)
    assert "default-src 'none'" in written
    assert not re.search("[\x00-\x08\x1b\u202e]", written)


def test_a_long_ranking_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(niche_report, "MAX_RANKED", 2)
    many = [niche(f"Niche {number}") for number in range(5)]
    assert "3 more are in the CSV file" in told(Findings([found("pets", "Spain", *many)]))


def test_without_anything_found_there_is_still_a_page() -> None:
    assert "0 niches" in told(Findings())
