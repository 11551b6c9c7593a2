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


class LogWiper:
    """Wipes the log of a database, on the one connection that writes to it.

    Args:
        db, path, vfs: the database.
        checkpoint_pages: the log is folded back, without being wiped, when it has so many pages.
    """

    def __init__(self, db: apsw.Connection, path: Path, vfs: str, checkpoint_pages: int) -> None:
        self._db, self._log, self._vfs = db, beside(path, "-wal"), vfs
        self._checkpoint_pages = checkpoint_pages
        #: pages that the log has had since it was all zeros
        self._used_pages = 0
        #: the log may hold what was overwritten
        self.is_needed = False
        _, pages, _ = _fold(db, "PASSIVE")
        if pages > 0:  # of a process that was killed: it may have had to wipe it
            self.is_needed = True
            self._used_pages = max(pages, self._log.stat().st_size // FRAME_BYTES)
        db.set_wal_hook(self._committed)

    def _committed(self, db: apsw.Connection, name: str, pages: int) -> int:
        """Note how much of the log is used, and fold it back as SQLite would by itself."""
        if pages > self._used_pages:
            self._used_pages = pages
        if pages >= self._checkpoint_pages:
            _fold(db, "PASSIVE")
        return apsw.SQLITE_OK

    def wipe(self) -> bool:
        """Wipe the log; return False if somebody reads it just now: then it is as it was.

        Raises:
            apsw.Error, OSError: the disk is full or fails; it is tried again.
        """
        self._db.set_busy_timeout(0)  # a reader is not waited for: the loop has other things to do
        try:
            is_busy, _, _ = _fold(self._db, "RESTART")
        except apsw.BusyError:
            is_busy = 1
        finally:
            self._db.set_busy_timeout(BUSY_MS)
        if is_busy:
            return False
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        file = apsw.VFSFile(self._vfs, str(self._log), [flags, 0])
        try:
            self._fill(file)
        finally:
            file.xClose()
        self._used_pages, self.is_needed = 0, False
        return True

    def _fill(self, file: apsw.VFSFile) -> None:
        """Fill with zeros what was used, the header before all else.

        Without a header a log is empty. With one, and with its first pages only, it would be taken
        for a shorter log, and lay old pages over new ones when the power goes in between.
        """
        end = min(file.xFileSize(), HEADER_BYTES + self._used_pages * FRAME_BYTES)
        if end < HEADER_BYTES:
            return
        file.xWrite(bytes(HEADER_BYTES), 0)
        file.xSync(_SYNC)
        for start in range(HEADER_BYTES, end, WRITE_BYTES):
            file.xWrite(bytes(min(WRITE_BYTES, end - start)), start)
        file.xSync(_SYNC)


#: As SQLite syncs with `synchronous` FULL and `fullfsync`.
_SYNC: Final = apsw.SQLITE_SYNC_FULL


def _fold(db: apsw.Connection, how: str) -> tuple[int, int, int]:
    """Fold the log back; return whether somebody was in the way, its pages, and those folded."""
    is_busy, pages, folded = fetch(db, f"PRAGMA wal_checkpoint({how})")[0]
    return is_busy, pages, folded
