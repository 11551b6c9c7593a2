"""Older journals: copied, brought up to date, and as useful as before."""

from __future__ import annotations

from pathlib import Path

import apsw
import msgspec
import pytest

from d8mesh.core.broker.store import DetailsOf, FinishedStates, OutcomesOf, TaskDetails
from d8mesh.core.protocol.task import SUSPECT, Completed, Requeued, Spec, Submitted
from d8mesh.edge.sqlite import Journal, Reader
from d8mesh.edge.sqlite.migrate import STEPS
from d8mesh.edge.sqlite.recovery.recover import recover
from d8mesh.edge.sqlite.recovery.salvage import Salvage
from d8mesh.edge.sqlite.schema import COUNTER_BITS, SCHEMA_VERSION

S = "0123456789abcdef"
#: The tables of version 1 as first written: an outcome was a row of its own.
VERSION_1 = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sessions(sid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE batches(
    seq INTEGER PRIMARY KEY, first INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL,
    spec BLOB NOT NULL, type TEXT NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL,
    is_done INTEGER NOT NULL, payloads BLOB NOT NULL);
CREATE INDEX open_batches ON batches(seq) WHERE is_done = 0;
CREATE TABLE outcomes(
    row INTEGER PRIMARY KEY, state INTEGER NOT NULL, n INTEGER NOT NULL, worker INTEGER,
    at REAL NOT NULL, payload BLOB NOT NULL);
CREATE INDEX bad_outcomes ON outcomes(state, row) WHERE state <> 1;
CREATE TABLE handouts(
    number INTEGER PRIMARY KEY, worker INTEGER NOT NULL, at REAL NOT NULL, tasks BLOB NOT NULL);
CREATE TABLE failures(
    row INTEGER NOT NULL, n INTEGER NOT NULL, worker INTEGER, at REAL NOT NULL,
    is_counted INTEGER NOT NULL, is_loss INTEGER NOT NULL, why TEXT NOT NULL);
CREATE INDEX failures_of ON failures(row);
CREATE TABLE workers(
    worker INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, type TEXT NOT NULL DEFAULT '', capabilities BLOB);
CREATE TABLE totals(
    id INTEGER PRIMARY KEY CHECK (id = 1), submitted INTEGER NOT NULL, completed INTEGER NOT NULL,
    failed INTEGER NOT NULL, cancelled INTEGER NOT NULL, pruned INTEGER NOT NULL);
CREATE TABLE keys(
    key TEXT PRIMARY KEY, digest BLOB NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE INDEX keys_of ON keys(first);
CREATE TABLE pruned(
    number INTEGER PRIMARY KEY, first INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL,
    at REAL NOT NULL);
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A journal of version 1: ten tasks, three finished, one of them badly."""
    path = tmp_path / "journal.db"
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute(VERSION_1)
    for name, value in (("schema", 1), ("epoch", 7), ("secret", b"s" * 32), ("broker_id", "o-1")):
        db.execute("INSERT INTO meta VALUES (?, ?)", (name, value))
    first = 1 << COUNTER_BITS
    spec = msgspec.msgpack.encode(Spec("echo", 5, 3))
    payloads = msgspec.msgpack.encode([b"x"] * 10)
    db.execute("INSERT INTO sessions VALUES (1, ?)", (S,))
    db.execute("INSERT INTO workers(worker, name, completed) VALUES (1, 'w', 2)")
    batch = (1, first, 10, spec, "echo", 1.0, 10, 0, payloads)
    db.execute("INSERT INTO batches VALUES (?,?,?,?,?,?,?,?,?)", batch)
    for n, state in ((0, 1), (1, 1), (4, 2)):
        row = (first + n, state, 1, 1, 2.0, f"r{n}".encode())
        db.execute("INSERT INTO outcomes VALUES (?,?,?,?,?,?)", row)
    db.execute("INSERT INTO totals VALUES (1, 10, 2, 1, 0, 0)")
    db.close()
    return path


def test_every_older_version_has_a_step() -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_a_journal_of_version_1_is_copied_and_goes_on(old: Path) -> None:
    journal = Journal(old)
    copy = journal.copy
    assert copy is not None
    restored = journal.restore()
    assert (restored.epoch, restored.totals.completed, restored.totals.failed) == (8, 2, 1)
    ((batch, finished),) = restored.batches
    assert (batch.count, sorted(finished)) == (10, [0, 1, 4])
    journal.append([Completed("w", [f"{S}-2", f"{S}-3"], [1, 1], [b"r2", b"r3"], 3.0)])
    reader = Reader(old)
    ids = [f"{S}-{n}" for n in range(6)]
    told = [b"r0", b"r1", b"r2", b"r3", b"r4", b""]
    assert reader.ask(OutcomesOf(ids)) == FinishedStates(bytes([1, 1, 1, 1, 2, 4]), told)
    reader.close()
    journal.close()
    again = Journal(old)
    assert again.copy is None
    again.close()
    db = apsw.Connection(str(copy))
    assert db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchall() == [(1,)]
    assert db.execute("SELECT count(*) FROM outcomes").fetchall() == [(3,)]
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_a_later_file_of_version_1_has_its_tables_already(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.restore()
    journal._db.execute("UPDATE meta SET value = 1 WHERE name = 'schema'")
    journal.close()
    journal = Journal(path)
    assert journal.copy is not None
    assert journal.restore().epoch == 2
    journal.close()


def test_a_sound_older_journal_needs_no_recovery(old: Path) -> None:
    assert recover(old, lambda text: None).outcome == "sound"


def test_a_journal_of_version_2_keeps_what_went_wrong(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    task_id = f"{S}-0"
    journal.append([Submitted(S, 0, Spec("echo", 5, 3), [b"x"], 1.0)])
    journal.append([Requeued("w", [task_id], [1], "broke", 1.0, is_counted=True)])
    db = journal._db
    for name in ("returned", "pause_s", "traceback"):
        db.execute(f"ALTER TABLE failures DROP COLUMN {name}")
    db.execute("UPDATE meta SET value = 2 WHERE name = 'schema'")
    journal.close()
    journal = Journal(path)
    assert journal.copy is not None
    paused = Requeued("v", [task_id], [2], "busy", 2.0, not_before_at=9.0, returned=SUSPECT)
    journal.append([paused])
    ((n, history),) = journal.restore().troubled.values()
    assert (n, history.errors, history.suspect_returns, history.not_before_at) == (2, 1, 1, 9.0)
    reader = Reader(path)
    details = reader.ask(DetailsOf(task_id))
    reader.close()
    journal.close()
    assert isinstance(details, TaskDetails)
    assert details.payload == b"x"
    assert [(each.error, each.pause_s) for each in details.past] == [("broke", 0.0), ("busy", 7.0)]


def test_old_rows_of_what_went_wrong_are_read_from_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.append([Submitted(S, 0, Spec("echo", 5, 3), [b"x"], 1.0)])
    db = journal._db
    for name in ("returned", "pause_s", "traceback"):
        db.execute(f"ALTER TABLE failures DROP COLUMN {name}")
    row = (1 << COUNTER_BITS, 1, None, 1.0, 1, 0, "broke")
    db.execute("INSERT INTO failures VALUES (?,?,?,?,?,?,?)", row)
    journal.close()
    saved = [
        row.values for row in Salvage(path, lambda text: None).rows() if row.table == "failures"
    ]
    assert saved == [[*row, 0, 0.0, None]]
