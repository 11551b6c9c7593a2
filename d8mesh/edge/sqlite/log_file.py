"""The journal's log file: as long as it will get from the start, and kept while it is in use.

A sync of bytes that are there already takes half the time of one that makes a file longer.

Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from pathlib import Path
from typing import Final

import apsw

HEADER_BYTES: Final = 32
#: A page of 4 KiB and its header.
FRAME_BYTES: Final = 4096 + 24
#: Zeros are written so many at a time: SQLite's own write takes less than 128 KiB.
WRITE_BYTES: Final = 65_536
#: It is not made longer on a disk that has less room than that many times its length.
ROOM: Final = 4


def keep(db: apsw.Connection, *, is_kept: bool = True) -> None:
    """Have the log stay, or go, when `db` is closed and where it is folded back."""
    value = ctypes.c_int(is_kept)
    db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(value))


def lengthen(path: Path, vfs: str, pages: int) -> None:
    """Make the log of the database `path` long enough for `pages`; zeros are no frames to SQLite.

    On a disk that has no room for it, or fails, it grows later.
    """
    size = HEADER_BYTES + pages * FRAME_BYTES
    flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    with contextlib.suppress(apsw.Error, OSError):
        file = apsw.VFSFile(vfs, f"{path}-wal", [flags, 0])
        try:
            end = file.xFileSize()
            has_room = shutil.disk_usage(path.parent).free > ROOM * size
            for start in range(end, size, WRITE_BYTES) if has_room else ():
                file.xWrite(bytes(min(WRITE_BYTES, size - start)), start)
        finally:
            file.xClose()
