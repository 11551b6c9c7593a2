"""The log after it was wiped: nothing of what was in it, and as long as before."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from d8mesh.edge.sqlite.files import FRAME_BYTES, HEADER_BYTES, connect, keep_log, lengthen_log
from d8mesh.edge.sqlite.wiper import LogWiper

PAGES = 40
MARK = b"SECRET-MARKER"


class Wiped:
    """A database with a log that is kept, and its wiper."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "some.db"
        self.log = folder / "some.db-wal"
        was_killed = self.log.exists()
        self.db = connect(self.path, "FULL", "", PAGES)
        keep_log(self.db)
        lengthen_log(self.path, "", PAGES)
        self.wiper = LogWiper(self.db, self.path, "", PAGES, is_needed=was_killed)
        self.db.execute("CREATE TABLE IF NOT EXISTS t(text BLOB)")

    def write(self, pages: int = 1, mark: bytes = MARK) -> None:
        self.db.execute("INSERT INTO t VALUES (?)", (mark * (pages * 300),))

    def wipe(self) -> list[bool]:
        return [self.wiper.wipe(), self.wiper.wipe()]

    def is_marked(self) -> bool:
        return MARK in self.log.read_bytes()

    def count(self) -> int:
        return len(self.db.execute("SELECT 1 FROM t").fetchall())


def test_a_wiped_log_holds_nothing_and_keeps_its_length(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write()
    size = wiped.log.stat().st_size
    assert wiped.is_marked()
    assert wiped.wipe() == [False, True]
    assert wiped.log.read_bytes() == bytes(size)
    wiped.write()
    assert wiped.is_marked()
    assert wiped.count() == 2


def test_what_is_written_meanwhile_stays_and_what_lies_behind_it_goes(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write(pages=20)
    assert not wiped.wiper.wipe()
    wiped.write(mark=b"something-new")
    assert wiped.wiper.wipe()
    behind = wiped.log.read_bytes()[HEADER_BYTES + wiped.wiper._used_pages * FRAME_BYTES :]
    assert behind == bytes(len(behind))
    assert len(behind) > 20 * FRAME_BYTES
    assert b"something-new" in wiped.log.read_bytes()
    (tmp_path / "copy.db").write_bytes(wiped.path.read_bytes())
    (tmp_path / "copy.db-wal").write_bytes(wiped.log.read_bytes())
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    assert copy.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_what_is_to_be_wiped_meanwhile_is_wiped_after_that(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write()
    wiped.wiper.wipe()
    wiped.write()
    wiped.wiper.is_needed = True
    assert not wiped.wiper.wipe()
    assert wiped.wiper.is_pending
    assert wiped.wipe() == [False, True]
    assert not wiped.is_marked()


def test_pages_behind_the_last_commit_are_wiped_too(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write(pages=30)
    wiped.write(pages=30)  # the log is folded back, and begins anew with the next
    wiped.db.execute("DELETE FROM t")
    assert wiped.is_marked()
    assert wiped.wipe() == [False, True]
    assert not wiped.is_marked()


def test_a_log_that_somebody_reads_is_left_alone_until_then(tmp_path: Path) -> None:
    wiped = Wiped(tmp_path)
    wiped.write()
    reader = apsw.Connection(str(wiped.path))
    rows = reader.execute("SELECT text FROM t UNION ALL SELECT text FROM t")
    assert next(rows)
    wiped.write()
    assert wiped.wipe() == [False, False]
    assert wiped.is_marked()
    assert rows.fetchall()
    assert wiped.wipe() == [False, True]
    assert not wiped.is_marked()
    assert reader.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_the_log_of_a_process_that_was_killed_is_wiped(tmp_path: Path) -> None:
    killed, own = tmp_path / "killed", tmp_path / "own"
    for folder in (killed, own):
        folder.mkdir()
    wiped = Wiped(killed)
    assert not wiped.wiper.is_pending
    wiped.write()
    for name in ("some.db", "some.db-wal"):
        (own / name).write_bytes((killed / name).read_bytes())
    again = Wiped(own)
    assert again.wiper.is_needed
    assert again.wipe() == [False, True]
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
    assert wiped.wipe() == [False, True]
    assert done[:3] == ["write at 0", "sync", "write at 32"]
