"""What journal and outbox have in common as files of SQLite: opened safely, changed at once.

The log file is made as long as it will get at the start, and kept while it is in use: a sync of
bytes that are there already takes half the time of one that makes a file longer.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous,
https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from d8mesh.private import make_file

#: How long a statement waits for a checkpoint of another connection.
BUSY_MS: Final = 5000
#: A database and what belongs to it, in the order in which they are moved away.
SIDES: Final = ("-shm", "-wal", "")
HEADER_BYTES: Final = 32
#: A page of 4 KiB and its header.
FRAME_BYTES: Final = 4096 + 24
#: Zeros are written so many at a time: SQLite's own write takes less than 128 KiB.
WRITE_BYTES: Final = 65_536
#: The log is not made longer on a disk that has less room than that many times its length.
ROOM: Final = 4


def connect(path: Path, synchronous: str, vfs: str, checkpoint_pages: int) -> apsw.Connection:
    """Open a database to write to.

    Args:
        path: the file; made if missing.
        synchronous: FULL; anything else only for showing that it loses.
        vfs: SQLite's way to the disk; empty: the usual one.
        checkpoint_pages: the log file is folded back when it has this many pages.
    """
    if not vfs:
        make_file(path)  # its log and what is beside it get its mode
    db = apsw.Connection(str(path), vfs=vfs or None)
    db.set_busy_timeout(BUSY_MS)
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("PRAGMA fullfsync = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}").fetchall()
    return db


@contextlib.contextmanager
def at_once(db: apsw.Connection) -> Iterator[None]:
    """Make changes in one transaction; what is raised is what went wrong first."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # also on Ctrl-C: no transaction may stay open
        with contextlib.suppress(apsw.Error):  # SQLite may have rolled it back itself
            db.execute("ROLLBACK")
        raise


def keep_log(db: apsw.Connection, *, is_kept: bool = True) -> None:
    """Have the log stay, or go, when `db` is closed and where it is folded back."""
    value = ctypes.c_int(is_kept)
    db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(value))


def lengthen_log(path: Path, vfs: str, pages: int) -> None:
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


def beside(path: Path, side: str) -> Path:
    """Return the file of this name with `side` behind it."""
    return path.with_name(path.name + side)


def mapped(path: Path, stack: contextlib.ExitStack) -> memoryview:
    """Return the bytes of a file, empty if it is missing, as long as `stack` is open."""
    if not path.exists() or not path.stat().st_size:
        return memoryview(b"")
    file = stack.enter_context(path.open("rb"))
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there; the file system logs their entries
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def swap(path: Path, fresh: Path, aside: Path) -> None:
    """Move a database to `aside` and `fresh` into its place; can be repeated after a power cut."""
    for side in SIDES:
        if beside(path, side).exists():
            beside(path, side).replace(beside(aside, side))
    sync(path.parent)
    fresh.replace(path)
    sync(path.parent)
