"""The log after it was wiped: nothing of what was in it, and as long as before."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from d8mesh.edge.sqlite.files import connect, keep_log, lengthen_log
from d8mesh.edge.sqlite.wiper import LogWiper

PAGES = 40
MARK = b"SECRET-MARKER"


class Wiped:
    """A database with a log that is kept, and its wiper."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "some.db"
        self.log = folder / "some.db-wal"
        self.open()
        self.db.execute("CREATE TABLE IF NOT EXISTS t(text BLOB)")

    def open(self) -> None:
        self.db = connect(self.path, "FULL", "", PAGES)
        keep_log(self.db)
        lengthen_log(self.path, "", PAGES)
        self.wiper = LogWiper(self.db, self.path, "", PAGES)

    def write(self, pages: int = 1) -> None:
        self.db.execute("INSERT INTO t VALUES (?)", (MARK * (pages * 300),))

    def is_marked(self) -> bool:
        return MARK in self.log.read_bytes()


def test_a_wiped_log_holds_nothing_and_keeps_its_length(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write()
    size = wiped.log.stat().st_size
    assert wiped.is_marked()
    assert wiped.wiper.wipe()
    assert wiped.log.read_bytes() == bytes(size)
    wiped.write()
    assert wiped.is_marked()
    assert wiped.db.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_pages_behind_the_last_commit_are_wiped_too(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write(pages=30)
    wiped.write(pages=30)  # the log is folded back, and begins anew with the next
    wiped.db.execute("DELETE FROM t")
    assert wiped.is_marked()
    assert wiped.wiper.wipe()
    assert not wiped.is_marked()


def test_a_log_that_somebody_reads_is_left_alone_until_then(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write()
    reader = apsw.Connection(str(wiped.path))
    rows = reader.execute("SELECT text FROM t UNION ALL SELECT text FROM t")
    assert next(rows)
    wiped.write()
    assert not wiped.wiper.wipe()
    assert wiped.is_marked()
    assert rows.fetchall()
    assert wiped.wiper.wipe()
    assert not wiped.is_marked()
    assert reader.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_the_log_of_a_process_that_was_killed_is_wiped(tmp_path: Path) -> None:
    killed, own = tmp_path / "killed", tmp_path / "own"
    killed.mkdir()
    own.mkdir()
    wiped = Wiped(killed)
    assert not LogWiper(apsw.Connection(str(own / "x.db")), own / "x.db", "", PAGES).is_needed
    wiped.write()
    for name in ("some.db", "some.db-wal"):
        (own / name).write_bytes((killed / name).read_bytes())
    again = Wiped(own)
    wiper = again.wiper
    assert [wiper.is_needed, wiper.wipe(), wiper.is_needed] == [True, True, False]
    assert not again.is_marked()


def test_the_header_is_gone_for_sure_before_anything_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header with some of its pages would be taken for a log, and old pages for new ones."""
    wiped = Wiped(tmp_path)
    wiped.write()
    done: list[str] = []

    class Watched(apsw.VFSFile):
        def xWrite(self, data: bytes, offset: int) -> None:
            done.append(f"write at {offset}")
            super().xWrite(data, offset)

        def xSync(self, flags: int) -> None:
            done.append("sync")
            super().xSync(flags)

    monkeypatch.setattr(apsw, "VFSFile", Watched)
    assert wiped.wiper.wipe()
    assert done[:3] == ["write at 0", "sync", "write at 32"]
    assert done[-1] == "sync"
