"""What can still be read of a damaged journal, row by row, table by table.

Reads the bytes of the file and its log and never opens them as a database: a damaged file
may not open at all, and opening it would change it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from d8mesh.core.protocol.messages import FINAL_STATES
from d8mesh.edge.sqlite.files import beside, mapped
from d8mesh.edge.sqlite.recovery.pages import Found, Pages, Row, Trees, Value
from d8mesh.edge.sqlite.schema import SEAL_NAME, WAITED

#: The tables with row ids, in the order of reading: what explains the others comes first.
TABLES: Final = (
    "sessions",
    "workers",
    "totals",
    "pruned",
    "batches",
    "outcomes",
    "failures",
    "handouts",
    "texts",
    "erasures",
)
#: Tables that are trees without row ids, and indexes that know what a table may have lost.
INDEXES: Final = {
    "meta": "meta",
    "keys": "keys",
    "sqlite_autoindex_sessions_1": "session names",
    "sqlite_autoindex_workers_1": "worker names",
    "sqlite_autoindex_batches_1": "batch starts",
    "bad_outcomes": "bad outcomes",
}
META_NAMES: Final = frozenset(
    {"schema", "epoch", "secret", "broker_id", "created_at", WAITED, SEAL_NAME}
)
#: Those of which the first column is the row's id.
_BY_ID: Final = frozenset(TABLES) - {"failures"}
#: Rows of `failures` that were written before it had its last three columns.
OLD_FAILURE_COLUMNS: Final = 7
_SESSION: Final = re.compile(r"[0-9a-v]{16}", re.ASCII)
#: Rows between two words of progress.
_ROWS_TOLD: Final = 50_000


class Saved(NamedTuple):
    """A row that fits its table; the id of the row stands where its column is."""

    table: str
    values: list[Value]
    missing_bytes: int


@dataclass(slots=True)
class TableState:
    """How a table was found."""

    rows: int = 0
    #: rows that were there and did not make sense, or lacked more than their last column
    unfit: int = 0
    #: rows whose last column is cut off
    cut: int = 0
    has_root: bool = True
    found: Found = field(default_factory=Found)

    @property
    def is_whole(self) -> bool:
        """True when nothing of it was damaged."""
        return self.has_root and self.found.is_whole and not self.unfit and not self.cut


class Salvage:
    """One damaged journal; its log is looked for beside it. `say` is told of progress."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        names = (*TABLES, *INDEXES.values())
        self.tables: dict[str, TableState] = {name: TableState() for name in names}
        self.ignored_frames = 0

    def rows(self) -> Iterator[Saved]:
        """Yield what can be read: the trees first, then what no tree leads to.

        Raises:
            OSError: the disk does not give the file.
        """
        with contextlib.ExitStack() as stack:
            database = mapped(self._path, stack)
            log = mapped(beside(self._path, "-wal"), stack)
            pages = Pages(database, log)
            self.ignored_frames = pages.ignored_frames
            trees = Trees(pages)
            roots = trees.roots()
            for name in INDEXES.keys() | set(TABLES):
                self.tables[INDEXES.get(name, name)].has_root = name in roots
            for name, label in INDEXES.items():
                if name in roots:
                    rows = trees.entries(roots[name], self.tables[label].found)
                    yield from self._fitting(label, rows)
            for name in TABLES:
                if name in roots:
                    self._say(f"reading {name}")
                    rows = trees.rows(roots[name], self.tables[name].found)
                    yield from self._fitting(name, rows)
            if not all(state.has_root and state.found.is_whole for state in self.tables.values()):
                yield from self._strays(trees)

    def _fitting(self, table: str, rows: Iterator[Row]) -> Iterator[Saved]:
        state = self.tables[table]
        for row in rows:
            values = _with_id(table, row)
            if not _fits(table, values, is_cut=row.missing_bytes > 0):
                state.unfit += 1
                continue
            state.rows += 1
            state.cut += row.missing_bytes > 0
            if state.rows % _ROWS_TOLD == 0:
                self._say(f"reading {table}: {state.rows} rows")
            yield Saved(table, values, row.missing_bytes)

    def _strays(self, trees: Trees) -> Iterator[Saved]:
        """Yield rows of pages that nothing leads to, where the tree lacks just these."""
        self._say("looking for pages that nothing leads to any more")
        for kind, tables in (("table", TABLES), ("index", ("meta", "keys"))):
            for row in trees.strays(kind):
                for table in tables:
                    state = self.tables[table]
                    values = _with_id(table, row)
                    is_missing = not state.has_root or (
                        any(gap.low < row.rowid <= gap.high for gap in state.found.gaps)
                        if kind == "table"
                        else not state.found.is_whole
                    )
                    if is_missing and _fits(table, values, is_cut=row.missing_bytes > 0):
                        state.rows += 1
                        state.cut += row.missing_bytes > 0
                        yield Saved(table, values, row.missing_bytes)
                        break


def _with_id(table: str, row: Row) -> list[Value]:
    """Put the row's id in the column that stands for it, and what older rows lack at their end."""
    if table == "failures" and len(row.values) == OLD_FAILURE_COLUMNS:
        return [*row.values, 0, 0.0, None]
    return [row.rowid, *row.values[1:]] if table in _BY_ID else row.values


#: What the columns hold. i: a number that is not negative, r: a real or whole number, b: bytes,
#: t: text, s: a session's name, f: 0 or 1, o: an outcome's state, ?: may be empty, *: anything.
_FORMS: Final = {
    "sessions": "is",
    "workers": "itiitb?",
    "totals": "iiiiii",
    "pruned": "iiir",
    "batches": "iiibtrifb",
    "outcomes": "iioii?rb",
    "failures": "iii?rfftirt?",
    "handouts": "iirb",
    "texts": "ib",
    "erasures": "irb",
    "meta": "t*",
    "keys": "tbii",
    "session names": "si",
    "worker names": "ti",
    "batch starts": "ii",
    "bad outcomes": "oi",
}


_TESTS: Final[dict[str, Callable[[Value], bool]]] = {
    "i": lambda value: isinstance(value, int) and value >= 0,
    "r": lambda value: isinstance(value, (int, float)),
    "b": lambda value: isinstance(value, bytes),
    "t": lambda value: isinstance(value, str),
    "s": lambda value: isinstance(value, str) and _SESSION.fullmatch(value) is not None,
    "f": lambda value: value in (0, 1),
    "o": lambda value: value in FINAL_STATES,
    "*": lambda value: True,
}


def _fits(table: str, values: list[Value], *, is_cut: bool) -> bool:
    form = _PARSED[table]
    if len(values) != len(form):
        return False
    last = len(form) - 1
    for index, (value, (kind, may_be_empty)) in enumerate(zip(values, form, strict=True)):
        if value is None and (may_be_empty or (is_cut and index == last)):
            continue
        if not _TESTS[kind](value):
            return False
    return table != "meta" or values[0] in META_NAMES


_PARSED: Final = {table: re.findall(r"([^?])(\??)", form) for table, form in _FORMS.items()}
