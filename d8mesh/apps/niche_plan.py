"""What Niche Discovery is to ask: markets and geographies, built in or from a file.

A YAML or JSON file has the two lists by name. A CSV file has two columns with these names (or
``market`` and ``geography``): each name that stands in a column counts once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from d8mesh.apps.answers import NicheName
from d8mesh.edge.input_file import CSV_SUFFIX, YAML_SUFFIXES, read_input
from d8mesh.errors import ConfigError

DEFAULT_MARKETS: Final = (
    "pet care",
    "elder care at home",
    "remote work",
    "repair and reuse",
    "learning languages",
)
DEFAULT_GEOGRAPHIES: Final = ("Spain", "Mexico", "United States")
#: Each is a task of a minute or so: more is a mistake in the file.
MAX_PAIRS: Final = 10_000
OPTION: Final = "--markets"
LISTS_EXPECTED: Final = 'expected {"markets": ["…"], "geographies": ["…"]}'
YAML_EXPECTED: Final = "expected `markets: […]` and `geographies: […]`, each a list of names"
TABLE_EXPECTED: Final = "expected a first line `market,geography`, and names below"
#: The columns of a CSV file -> the list that they belong to.
_PLAN_COLUMNS: Final = {
    "market": "markets", "markets": "markets",
    "geography": "geographies", "geographies": "geographies",
}  # fmt: skip

_NicheNames = Annotated[list[NicheName], Meta(min_length=1)]


class NichePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to ask: each market in each geography."""

    markets: _NicheNames
    geographies: _NicheNames

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every market with every geography, each pair once, in order."""
        pairs = ((m.strip(), g.strip()) for m in self.markets for g in self.geographies)
        return list(dict.fromkeys(pairs))


def read_plan(file: Path | None) -> NichePlan:
    """Return the plan of a YAML, JSON or CSV file with markets and geographies, or the default one.

    Raises:
        ConfigError: the file can't be read, or is not of that form.
    """
    if file is None:
        return NichePlan(markets=list(DEFAULT_MARKETS), geographies=list(DEFAULT_GEOGRAPHIES))
    is_table = file.suffix.lower() == CSV_SUFFIX
    expected = TABLE_EXPECTED if is_table else LISTS_EXPECTED
    if file.suffix.lower() in YAML_SUFFIXES:
        expected = YAML_EXPECTED
    plan = read_input(file, NichePlan, option=OPTION, expected=expected, from_rows=_lists_in)
    if not all(name.strip() for name in [*plan.markets, *plan.geographies]):
        raise ConfigError(f"{OPTION} {file}: a name is empty; {expected}")
    if len(plan.pairs) > MAX_PAIRS:
        raise ConfigError(f"{OPTION} {file}: {len(plan.pairs)} pairs, at most {MAX_PAIRS}")
    return plan


def _lists_in(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    """Return the names of each column of a table."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for head, name in row.items():
            column = _PLAN_COLUMNS.get(head)
            if column and name:
                found.setdefault(column, []).append(name)
    return {column: list(dict.fromkeys(names)) for column, names in found.items()}
