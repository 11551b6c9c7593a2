"""What Niche Discovery found, in memory and as files: JSON, Markdown and CSV.

What models and workers wrote is data: it is escaped in Markdown, and no cell of the CSV
is a formula.
"""

from __future__ import annotations

import csv
import html
import io
from pathlib import Path
from typing import Final, Literal

import msgspec

from d8mesh.apps.answers import Niche
from d8mesh.apps.results import write_whole
from d8mesh.errors import D8Error
from d8mesh.words import tr, translated

FORMAT: Final = "d8-niche-1"
JSON_NAME: Final = "niches.json"
MARKDOWN_NAME: Final = "niches.md"
CSV_NAME: Final = "niches.csv"
#: Ten thousand pairs with twenty long niches each.
MAX_FINDINGS_BYTES: Final = 1_000_000_000
#: A spreadsheet takes a cell that begins so for a formula.
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")

_CSV_COLUMNS: Final = ("opportunity", "name", "market", "geography", "demand", "growth",
                       "feasibility", "competition", "description", "model")  # fmt: skip


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one pair: niches, or an error."""

    market: str
    geography: str
    niches: list[Niche] = []
    error: str = ""
    model: str = ""

    @property
    def is_found(self) -> bool:
        """True if there are niches."""
        return bool(self.niches)

    @property
    def summary(self) -> str:
        """Say in a few words what came of it."""
        if self.niches:
            return tr("niches: {count}", count=len(self.niches))
        return tr("unusable: {why}", why=translated(self.error))


class Findings:
    """All that was found so far, one `Finding` for each pair."""

    def __init__(self, findings: list[Finding] | None = None) -> None:
        self._by_pair = {(each.market, each.geography): each for each in findings or []}

    def put(self, finding: Finding) -> None:
        """Keep `finding` in the place of an older one of its pair."""
        self._by_pair[finding.market, finding.geography] = finding

    def all(self) -> list[Finding]:
        """Return all, in the order in which their pairs came."""
        return list(self._by_pair.values())

    def is_found(self, pair: tuple[str, str]) -> bool:
        """Tell whether there are niches of `pair`."""
        finding = self._by_pair.get(pair)
        return finding is not None and finding.is_found

    def is_unusable(self, pair: tuple[str, str]) -> bool:
        """Tell whether `pair` was answered without anything usable."""
        finding = self._by_pair.get(pair)
        return finding is not None and not finding.is_found

    def ranking(self) -> list[tuple[str, str, Niche]]:
        """Return (market, geography, niche) of all niches, the best opportunity first."""
        rows = [
            (each.market, each.geography, niche) for each in self.all() for niche in each.niches
        ]
        return sorted(rows, key=lambda row: -row[2].opportunity)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["d8-niche-1"] = FORMAT
    findings: list[Finding]


def load(folder: Path) -> Findings:
    """Return what an earlier run left in `folder`: nothing if there was none.

    Raises:
        D8Error: its file can't be read, or is another's.
    """
    file = folder / JSON_NAME
    try:
        if not file.exists():
            return Findings()
        if file.stat().st_size > MAX_FINDINGS_BYTES:
            raise D8Error(f"{file} is too large to be a result: choose another --output")
        return Findings(msgspec.json.decode(file.read_bytes(), type=_File).findings)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise D8Error(
            f"{file} is not a result of Niche Discovery ({error}): choose another --output"
        ) from error


def save(folder: Path, findings: Findings) -> None:
    """Write `findings` to `folder`, each file whole, the JSON first.

    Raises:
        D8Error: a file could not be written.
    """
    content = msgspec.json.encode(_File(findings=findings.all()))
    write_whole(folder / JSON_NAME, msgspec.json.format(content, indent=2).decode() + "\n")
    write_whole(folder / MARKDOWN_NAME, markdown(findings))
    write_whole(folder / CSV_NAME, table(findings))


def markdown(findings: Findings) -> str:
    """Return the ranking, and what is unusable, as Markdown."""
    lines = ["# Niches", "", "| opportunity | niche | market | geography | description |"]
    lines.append("| ---: | --- | --- | --- | --- |")
    for market, geography, niche in findings.ranking():
        cells = (niche.name, market, geography, niche.description)
        lines.append(f"| {niche.opportunity:.1f} | {' | '.join(map(_escaped, cells))} |")
    unusable = [each for each in findings.all() if not each.is_found]
    if unusable:
        lines += ["", "## Unusable", ""]
        for each in unusable:
            lines.append(f"- {_escaped(f'{each.market}, {each.geography}: {each.error}')}")
    return "\n".join(lines) + "\n"


def table(findings: Findings) -> str:
    """Return the ranking as CSV with a header."""
    models = {(each.market, each.geography): each.model for each in findings.all()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for market, geography, niche in findings.ranking():
        scores = (niche.demand, niche.growth, niche.feasibility, niche.competition)
        texts = (niche.name, market, geography, niche.description, models[market, geography])
        name, market_cell, geography_cell, description, model = map(_cell, texts)
        head = (niche.opportunity, name, market_cell, geography_cell)
        writer.writerow((*head, *scores, description, model))
    return file.getvalue()


def _escaped(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for mark in "\\`*_[]|#":
        line = line.replace(mark, f"\\{mark}")
    return html.escape(line, quote=False)


def _cell(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
