"""What Niche Discovery is to ask: markets and geographies, built in or from a file.

A JSON file is an object with the two lists. A CSV file has two columns with these names (or
``market`` and ``geography``): each name that stands in a column counts once.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from d8mesh.apps.answers import NicheName
from d8mesh.apps.progress import one_line
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
#: A file of names.
MAX_NAMES_BYTES: Final = 4 * 1024 * 1024
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
    """Return the plan of a JSON or CSV file with markets and geographies, or the default one.

    Raises:
        ConfigError: the file can't be read, or is not of that form.
    """
    if file is None:
        return NichePlan(markets=list(DEFAULT_MARKETS), geographies=list(DEFAULT_GEOGRAPHIES))
    is_csv = file.suffix.lower() == ".csv"
    expected = 'expected {"markets": ["…"], "geographies": ["…"]}'
    if is_csv:
        expected = "expected a first line `market,geography`, and names below"
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_NAMES_BYTES + 1)
        if len(content) > MAX_NAMES_BYTES:
            raise ConfigError(f"--markets {file}: larger than {MAX_NAMES_BYTES} bytes; {expected}")
        content = content.removeprefix(b"\xef\xbb\xbf")
        if is_csv:
            plan = msgspec.convert(_lists_in(content.decode("utf-8")), NichePlan)
        else:
            plan = msgspec.json.decode(content, type=NichePlan)
    except OSError as error:
        raise ConfigError(f"--markets {file}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, csv.Error) as error:
        raise ConfigError(f"--markets {file}: {one_line(str(error))}; {expected}") from error
    if not all(name.strip() for name in [*plan.markets, *plan.geographies]):
        raise ConfigError(f"--markets {file}: a name is empty; {expected}")
    if len(plan.pairs) > MAX_PAIRS:
        raise ConfigError(f"--markets {file}: {len(plan.pairs)} pairs, at most {MAX_PAIRS}")
    return plan


def _lists_in(text: str) -> dict[str, list[str]]:
    """Return the names of each column of a CSV file; separators are commas or semicolons."""
    head = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head else ",")
    columns = [_PLAN_COLUMNS.get(name.strip().lower(), "") for name in next(rows, [])]
    found: dict[str, list[str]] = {}
    for row in rows:
        for column, name in zip(columns, row, strict=False):
            if column and name.strip():
                found.setdefault(column, []).append(name.strip())
    return {column: list(dict.fromkeys(names)) for column, names in found.items()}
