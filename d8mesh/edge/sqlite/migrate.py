"""An older file brought up to date: a copy beside it first, then one transaction.

To change the tables of the journal: raise `SCHEMA_VERSION`, change `SCHEMA`, add a step here, and
keep a file of the old version in the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import apsw
import msgspec

from d8mesh.edge.sqlite.files import at_once, beside, sync
from d8mesh.edge.sqlite.schema import TEXT_TABLES, fetch
from d8mesh.private import make_file

#: version -> the step to the next one, within a transaction
Steps: TypeAlias = Mapping[int, Callable[[apsw.Connection], None]]


def migrate(db: apsw.Connection, path: Path, version: int, steps: Steps, mark: str) -> Path:
    """Bring the file `path` from `version` to the current one; return where the copy lies.

    Args:
        db: the open file; nothing else uses it.
        mark: the statement that notes the current version in the file.

    Raises:
        apsw.Error: a full disk, or a damaged file; the file is as it was.
        OSError: the copy could not be made safe; the file is as it was.
        KeyError: there is no way from this version.
    """
    todo = [steps[each] for each in range(version, max(steps) + 1)]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    copy = path.with_name(f"{path.stem}-v{version}-{stamp}{path.suffix}")
    part = beside(copy, ".part")
    part.unlink(missing_ok=True)
    try:
        make_file(part)
        db.execute("VACUUM INTO ?", (str(part),))
        sync(part)
        part.replace(copy)
        sync(copy.parent)
    except BaseException:  # also on Ctrl-C: nothing half done may lie there
        part.unlink(missing_ok=True)
        raise
    with at_once(db):
        for step in todo:
            step(db)
        db.execute(mark)
    return copy


def _from_1(db: apsw.Connection) -> None:
    """Outcomes were one row for each task; they are runs now. Later files of 1 had runs too."""
    columns = {row[1] for row in fetch(db, "PRAGMA table_info(outcomes)")}
    if "first" in columns:
        return
    db.create_scalar_function("one_of", _one_of, 1, deterministic=True)
    db.execute(
        """
        DROP INDEX bad_outcomes;
        ALTER TABLE outcomes RENAME TO outcomes_1;
        CREATE TABLE outcomes(
            first INTEGER PRIMARY KEY, count INTEGER NOT NULL, state INTEGER NOT NULL,
            n INTEGER NOT NULL, worker INTEGER, at REAL NOT NULL, payloads BLOB NOT NULL);
        INSERT INTO outcomes
            SELECT row, 1, state, n, worker, at, one_of(payload) FROM outcomes_1 ORDER BY row;
        DROP TABLE outcomes_1;
        CREATE INDEX bad_outcomes ON outcomes(state, first) WHERE state <> 1;
        """
    )


def _from_2(db: apsw.Connection) -> None:
    """What went wrong has more to tell: was it given back, the pause after it, the traceback."""
    columns = {row[1] for row in fetch(db, "PRAGMA table_info(failures)")}
    for name, kind in (
        ("returned", "INTEGER NOT NULL DEFAULT 0"),
        ("pause_s", "REAL NOT NULL DEFAULT 0"),
        ("traceback", "TEXT"),
    ):
        if name not in columns:
            db.execute(f"ALTER TABLE failures ADD COLUMN {name} {kind}")


def _from_3(db: apsw.Connection) -> None:
    """What was asked and answered can be erased: results of tasks of doors lie in a table apart."""
    db.execute(TEXT_TABLES)


def _one_of(*payloads: apsw.SQLiteValue) -> bytes:
    return msgspec.msgpack.encode(payloads)


STEPS: Final[Steps] = {1: _from_1, 2: _from_2, 3: _from_3}
