"""The log of a database without what was overwritten since: folded back, then filled with zeros.

The log holds pages as they were. Once all of it is in the database and nobody reads it, its bytes
mean nothing and may go. It keeps its length: a log that has to grow makes every sync slower.

Source: https://www.sqlite.org/wal.html#ckpt, https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

from d8mesh.edge.sqlite.files import BUSY_MS, FRAME_BYTES, HEADER_BYTES, WRITE_BYTES, beside
from d8mesh.edge.sqlite.schema import fetch

#: As SQLite syncs with `synchronous` FULL and `fullfsync`.
_SYNC: Final = apsw.SQLITE_SYNC_FULL


class LogWiper:
    """Wipes the log of a database, on the one connection that writes to it.

    In two steps, so that none holds the writer up: the log begins anew, and what lies behind its
    new pages is overwritten when there are some.

    Args:
        db, path, vfs: the database.
        checkpoint_pages: the log is folded back, without being wiped, when it has so many pages.
        is_needed: the log is that of a process that was killed, which may have had to wipe it.
    """

    def __init__(
        self,
        db: apsw.Connection,
        path: Path,
        vfs: str,
        checkpoint_pages: int,
        *,
        is_needed: bool = False,
    ) -> None:
        self._db, self._log, self._vfs = db, beside(path, "-wal"), vfs
        self._checkpoint_pages = checkpoint_pages
        #: the log may hold what was overwritten
        self.is_needed = is_needed
        #: pages that the log has had since it was all zeros
        self._used_pages = self._log.stat().st_size // FRAME_BYTES if is_needed else 0
        #: the log has begun anew, and has had so many pages before
        self._old_pages: int | None = None
        db.set_wal_hook(self._committed)

    @property
    def is_pending(self) -> bool:
        """True while `wipe` has something to do."""
        return self.is_needed or self._old_pages is not None

    def _committed(self, db: apsw.Connection, name: str, pages: int) -> int:
        """Note how much of the log is used, and fold it back as SQLite would by itself."""
        if pages > self._used_pages:
            self._used_pages = pages
        if pages >= self._checkpoint_pages:
            fold(db, "PASSIVE")
        return apsw.SQLITE_OK

    def wipe(self) -> bool:
        """Do the next step; return whether it was the last: the log holds nothing of before.

        Raises:
            apsw.Error, OSError: the disk is full or fails; it is tried again.
        """
        if self._old_pages is None:
            self._begin_anew()
            return False
        self._fill(self._old_pages)
        self._old_pages = None
        return not self.is_needed

    def _begin_anew(self) -> None:
        """Have the next page written at the start of the log; not while somebody reads it."""
        self._db.set_busy_timeout(0)  # a reader is not waited for: the loop has other things to do
        try:
            is_busy = fold(self._db, "RESTART")
        except apsw.BusyError:
            is_busy = True
        finally:
            self._db.set_busy_timeout(BUSY_MS)
        if not is_busy:
            self._old_pages, self._used_pages, self.is_needed = self._used_pages, 0, False

    def _fill(self, old_pages: int) -> None:
        """Fill with zeros what was used before, behind the pages that are there by now.

        These have a header of their own, for which what lies behind them is no part of the log.
        Without new pages the old header goes first: with it, and with some of its pages, the log
        would be taken for a shorter one, and old pages for new ones, if the power went then.
        """
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        file = apsw.VFSFile(self._vfs, str(self._log), [flags, 0])
        try:
            end = min(file.xFileSize(), HEADER_BYTES + old_pages * FRAME_BYTES)
            if not self._used_pages and end >= HEADER_BYTES:
                file.xWrite(bytes(HEADER_BYTES), 0)
                file.xSync(_SYNC)
            for start in range(HEADER_BYTES + self._used_pages * FRAME_BYTES, end, WRITE_BYTES):
                file.xWrite(bytes(min(WRITE_BYTES, end - start)), start)
        finally:
            file.xClose()


def fold(db: apsw.Connection, how: str) -> bool:
    """Fold the log back; return whether somebody was in the way."""
    return bool(fetch(db, f"PRAGMA wal_checkpoint({how})")[0][0])
