"""What a scenario found: tables of samples, nothing thrown away."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(slots=True)
class Table:
    """Samples by row and column, all in one unit; a sample for each round."""

    title: str
    unit: str
    cells: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, row: str, column: str, value: float) -> None:
        """Keep one more sample."""
        self.cells.setdefault((row, column), []).append(value)

    def samples(self, row: str, column: str) -> list[float]:
        """Return the samples of a cell; none if it was not measured."""
        return self.cells.get((row, column), [])

    def latest(self, row: str, column: str) -> float:
        """Return the newest sample of a cell."""
        return self.cells[row, column][-1]

    @property
    def rows(self) -> list[str]:
        """The rows in the order of their first sample."""
        return list(dict.fromkeys(row for row, _ in self.cells))

    @property
    def columns(self) -> list[str]:
        """The columns in the order of their first sample."""
        return list(dict.fromkeys(column for _, column in self.cells))


@dataclass(slots=True)
class Findings:
    """All that one scenario found."""

    tables: list[Table] = field(default_factory=list)
    #: name -> many single measurements, for plots of a distribution
    series: dict[str, list[float]] = field(default_factory=dict)
    #: what a reader has to know to read the figures
    notes: list[str] = field(default_factory=list)

    def table(self, title: str, unit: str) -> Table:
        """Return the table of that title, made at its first mention."""
        for each in self.tables:
            if each.title == title:
                return each
        self.tables.append(Table(title, unit))
        return self.tables[-1]

    def note(self, text: str) -> None:
        """Keep a caveat once."""
        if text not in self.notes:
            self.notes.append(text)

    def as_json(self) -> dict[str, Any]:
        """Return what stands in the report's file."""
        tables = [
            {
                "title": table.title,
                "unit": table.unit,
                "cells": [
                    {"row": row, "column": column, "median": middle(samples), "samples": samples}
                    for (row, column), samples in table.cells.items()
                ],
            }
            for table in self.tables
        ]
        return {"notes": self.notes, "tables": tables, "series": self.series}


def findings_of(read: dict[str, Any]) -> Findings:
    """Return the findings that `Findings.as_json` told."""
    found = Findings(series=dict(read.get("series", {})), notes=list(read.get("notes", ())))
    for told in read["tables"]:
        table = found.table(told["title"], told["unit"])
        for cell in told["cells"]:
            table.cells[cell["row"], cell["column"]] = list(cell["samples"])
    return found


def ratios(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    """Return round by round what `tops` are over `bottoms`: a ratio within one run."""
    return [top / bottom for top, bottom in zip(tops, bottoms, strict=False) if bottom]


def rotated(items: Sequence[_T], turn: int) -> list[_T]:
    """Return them beginning with another each turn: none is always the first or after the same."""
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]


def middle(samples: Sequence[float]) -> float | None:
    """Return the median, None without samples."""
    return statistics.median(samples) if samples else None


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest of `values` that `part` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
