"""The tables of the journal, row ids, and multi-row statements.

A task's row id is its session's number and its counter, so no index on text ids exists,
and inserts go to the end of a session's range. The payloads of a batch are one blob.
Outcomes that came together for consecutive tasks of a batch are one row too: a run, with
one list of results; of tasks that came in by a door these are references to `texts`, where they
can be erased (module `texts`). `erasures` has what is to be erased later. Runs neither overlap nor
reach into another batch: that is the task table's doing, the key refuses only a second run from the
same task on.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

import apsw

SCHEMA_VERSION: Final = 4
#: Beside a journal while a recovery moves files: no start may take what is there for all.
NOTE_SUFFIX: Final = ".recovering"
#: A task id's counter takes the low 40 bits of its row id, its session's number the rest.
COUNTER_BITS: Final = 40
#: Sessions that one journal can name: row ids are signed 64-bit integers.
MAX_SESSIONS: Final = 2 ** (63 - COUNTER_BITS) - 1
#: Tombstones of pruned batches kept, so that their tasks answer "pruned" and not "unknown".
MAX_TOMBSTONES: Final = 1_000_000
#: In `meta`: how long workers were waited for that are not back since a start, worker -> seconds.
#: A file without it has none.
WAITED: Final = "waited"
#: In `meta` of a file whose payloads are encrypted: what tells whether a key is theirs.
SEAL_NAME: Final = "seal"
Value: TypeAlias = int | float | str | bytes | None

#: The tables that came with version 4.
TEXT_TABLES: Final = """
CREATE TABLE IF NOT EXISTS texts(number INTEGER PRIMARY KEY, text BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS erasures(
    row INTEGER PRIMARY KEY, due_at REAL NOT NULL, rest BLOB NOT NULL);
"""
SCHEMA: Final = (
    """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sessions(sid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE batches(
    seq INTEGER PRIMARY KEY, first INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL,
    spec BLOB NOT NULL, type TEXT NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL,
    is_done INTEGER NOT NULL, payloads BLOB NOT NULL);
CREATE INDEX open_batches ON batches(seq) WHERE is_done = 0;
CREATE TABLE outcomes(
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, state INTEGER NOT NULL,
    n INTEGER NOT NULL, worker INTEGER, at REAL NOT NULL, payloads BLOB NOT NULL);
CREATE INDEX bad_outcomes ON outcomes(state, first) WHERE state <> 1;
CREATE TABLE handouts(
    number INTEGER PRIMARY KEY, worker INTEGER NOT NULL, at REAL NOT NULL, tasks BLOB NOT NULL);
CREATE TABLE failures(
    row INTEGER NOT NULL, n INTEGER NOT NULL, worker INTEGER, at REAL NOT NULL,
    is_counted INTEGER NOT NULL, is_loss INTEGER NOT NULL, why TEXT NOT NULL,
    returned INTEGER NOT NULL DEFAULT 0, pause_s REAL NOT NULL DEFAULT 0, traceback TEXT);
CREATE INDEX failures_of ON failures(row);
CREATE TABLE workers(
    worker INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, type TEXT NOT NULL DEFAULT '', capabilities BLOB);
CREATE TABLE totals(
    id INTEGER PRIMARY KEY CHECK (id = 1), submitted INTEGER NOT NULL, completed INTEGER NOT NULL,
    failed INTEGER NOT NULL, cancelled INTEGER NOT NULL, pruned INTEGER NOT NULL);
INSERT INTO totals VALUES (1, 0, 0, 0, 0, 0);
CREATE TABLE keys(
    key TEXT PRIMARY KEY, digest BLOB NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE INDEX keys_of ON keys(first);
CREATE TABLE pruned(
    number INTEGER PRIMARY KEY, first INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL,
    at REAL NOT NULL);
"""
    + TEXT_TABLES
)

#: Rows per multi-row statement, largest first: `executemany` retakes the GIL for every row.
CHUNKS: Final = (256, 32, 4, 1)
#: Columns of `failures`.
FAILURE_COLUMNS: Final = 10


@cache
def insert_sql(table: str, width: int, rows: int) -> str:
    """Return the statement that inserts `rows` rows of `width` columns."""
    one = "(" + ",".join("?" * width) + ")"
    return f"INSERT INTO {table} VALUES " + ",".join([one] * rows)


@cache
def completed_sql(rows: int) -> str:
    """Return the statement that adds to the counts of `rows` workers: (worker, count) each."""
    if rows == 1:  # no table to join with, which takes twice the time
        return "UPDATE workers SET completed = completed + ?2 WHERE worker = ?1"
    pairs = ",".join(["(?,?)"] * rows)
    return (
        "UPDATE workers SET completed = completed + done.column2 "
        f"FROM (VALUES {pairs}) AS done WHERE worker = done.column1"
    )


def covering(
    db: apsw.Connection, table: str, row: int, columns: str = "first"
) -> tuple[Any, ...] | None:
    """Return columns of the batch, run or tombstone that holds the task `row`; None without one."""
    sql = f"SELECT first + count, {columns} FROM {table} WHERE first <= ? ORDER BY first DESC"
    found = fetch(db, sql + " LIMIT 1", (row,))
    return found[0][1:] if found and row < found[0][0] else None


def split_row(row: int, names: dict[int, str]) -> tuple[str, int]:
    """Return the session and counter of a row id; `names` maps session numbers."""
    return names[row >> COUNTER_BITS], row & (1 << COUNTER_BITS) - 1


def fetch(db: apsw.Connection, sql: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
    """Return all rows of a query; what the columns hold stands in the schema."""
    return db.execute(sql, values).fetchall()


def runs(
    rows: Sequence[int], ns: Sequence[int], breaks: Container[int]
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run: rows that follow each other, of one attempt number, and
    none of `breaks` but the first."""
    start, expected, n = 0, rows[0] if rows else 0, ns[0] if ns else 0
    for index, row in enumerate(rows):
        if row != expected or ns[index] != n or row in breaks:
            if index:
                yield start, index
            start, n = index, ns[index]
        expected = row + 1
    if rows:
        yield start, len(rows)
