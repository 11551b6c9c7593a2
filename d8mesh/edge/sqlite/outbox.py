"""The outbox: results that no orchestrator has acknowledged yet, on the worker's own disk.

One process holds an outbox, by a lock on a file of its own; what a worker that is gone left
behind is adopted by the next one. A damaged one is set aside and what can be read of it goes
on in a new one: what it lacked is run again. SQLite comes through apsw.

Source: https://www.sqlite.org/wal.html; `filelock`
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import apsw
import filelock

from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.recovery.pages import Found, Pages, Row, Trees
from d8mesh.errors import OutboxBrokenError, WorkerError

OUTBOX_VERSION: Final = 2
OUTBOX_NAME: Final = "outbox.db"
LOCK_NAME: Final = "lock"
#: The log file is folded back into the database at about 4 MB (4 KiB pages).
OUTBOX_CHECKPOINT_PAGES: Final = 1000
#: Rows per statement; apsw takes the interpreter lock for every single one otherwise.
ROWS_AT_ONCE: Final = 64
BUSY_MS: Final = 5000

_SCHEMA: Final = """
CREATE TABLE results(
    token BLOB PRIMARY KEY, broker TEXT NOT NULL, task TEXT NOT NULL, kind INTEGER NOT NULL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_TOKEN_BYTES: Final = 16
#: What damage raises; anything else may pass: a full disk, a disk that fails.
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, apsw.SQLError)


class Outbox:
    """The results in one folder. The caller holds the folder's lock (`edge.identity`).

    Args:
        folder: where the file lies; made if missing.
        synchronous: FULL; anything else only for showing that it loses.
        vfs: SQLite's way to the disk; empty: the usual one.
        checkpoint_pages: the log file is folded back when it has this many pages.

    Raises:
        OutboxBrokenError: the file is damaged or of a newer version.
        WorkerError: the disk is full or fails.

    Thread: one at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        synchronous: str = "FULL",
        vfs: str = "",
        checkpoint_pages: int = OUTBOX_CHECKPOINT_PAGES,
    ) -> None:
        self._path = folder / OUTBOX_NAME
        self._how = (synchronous, vfs, checkpoint_pages)
        #: a write or sync failed: the connection is not trusted again
        self._is_doubtful = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except _DAMAGE as error:
            raise _broken(self._path, str(error)) from error
        except (apsw.Error, OSError) as error:
            raise WorkerError(
                f"the outbox {self._path} cannot be used now ({error}): make room on its disk, "
                "or look after the disk"
            ) from error

    def keep(self, results: Sequence[KeptResult]) -> None:
        """Write the results and commit once; when this returns they are on the disk.

        Raises:
            WorkerError: nothing of it was written.
        """
        self._commit(lambda: self._insert(results))

    def forget(self, tokens: Sequence[bytes]) -> None:
        """Delete the results with these tokens; unknown ones are ignored.

        Raises:
            WorkerError: nothing of it was deleted.
        """

        def delete() -> None:
            for start in range(0, len(tokens), ROWS_AT_ONCE):
                some = tuple(tokens[start : start + ROWS_AT_ONCE])
                marks = ",".join("?" * len(some))
                self._db.execute(f"DELETE FROM results WHERE token IN ({marks})", some)

        self._commit(delete)

    def probe(self) -> None:
        """Write something that changes nothing.

        Raises:
            WorkerError: it does not take anything now.
        """
        self._commit(lambda: self._db.execute(f"PRAGMA user_version={OUTBOX_VERSION}"))

    def load(self) -> list[KeptResult]:
        """Return all results in it.

        Raises:
            OutboxBrokenError: a row is damaged.
        """
        try:
            rows: list[tuple[Any, ...]] = self._db.execute(
                "SELECT broker, task, token, kind, payload, crc FROM results ORDER BY rowid"
            ).fetchall()
        except apsw.Error as error:
            raise _broken(self._path, str(error)) from error
        if any(crc32(row[4]) != row[5] for row in rows):
            raise _broken(self._path, "a result is not what was written")
        return [KeptResult(*row[:5]) for row in rows]

    def close(self) -> None:
        """Let the file go."""
        with contextlib.suppress(apsw.Error):  # a last checkpoint that fails is made up for later
            self._db.close()

    def _open(self) -> None:
        synchronous, vfs, checkpoint_pages = self._how
        self._db = db = apsw.Connection(str(self._path), vfs=vfs or None)
        db.set_busy_timeout(BUSY_MS)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("PRAGMA fullfsync=ON")
        db.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        version = int(db.pragma("user_version"))
        if version > OUTBOX_VERSION:
            raise OutboxBrokenError(
                f"the outbox {self._path} is of version {version}, newer than this d8mesh "
                f"({OUTBOX_VERSION}): it is not damaged; update d8mesh"
            )
        if version == 0:
            _at_once(db, lambda: db.execute(f"{_SCHEMA}PRAGMA user_version={OUTBOX_VERSION}"))
        check = db.execute("PRAGMA quick_check(1)").fetchall()
        if check != [("ok",)]:
            raise _broken(self._path, str(check[0][0]))
        if 0 < version < OUTBOX_VERSION:
            _migrate(db, self._path, version)

    def _insert(self, results: Sequence[KeptResult]) -> None:
        for start in range(0, len(results), ROWS_AT_ONCE):
            some = results[start : start + ROWS_AT_ONCE]
            marks = ",".join(["(?,?,?,?,?,?)"] * len(some))
            values: list[Any] = []
            for row in some:
                values += (row.token, row.broker_id, row.task_id, row.kind, row.payload)
                values.append(crc32(row.payload))
            self._db.execute(f"INSERT OR REPLACE INTO results VALUES {marks}", values)

    def _commit(self, change: Callable[[], object]) -> None:
        try:
            if self._is_doubtful:  # after a failed sync nobody knows what the disk has
                self.close()
                self._open()
                self._is_doubtful = False
            _at_once(self._db, change)
        except (apsw.Error, OSError) as error:
            self._is_doubtful = True
            raise WorkerError(f"cannot write the outbox {self._path}: {error}") from error


def adopt(own: Outbox, workers: Path, *, own_folder: Path) -> int:
    """Move what lies in outboxes that nobody holds into `own`; return how many results.

    Of a damaged one what can be read; one of a newer version is left where it is.

    Args:
        own: the outbox to fill.
        workers: the folder with one folder for each worker of this machine.
        own_folder: the one of them that belongs to `own`.
    """
    count = 0
    for path in sorted(workers.glob(f"*/{OUTBOX_NAME}")):
        if path.parent == own_folder:
            continue
        lock = filelock.FileLock(path.parent / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            continue
        try:
            count += _move(path.parent, own)
        except WorkerError:
            continue
        finally:
            lock.release()
    return count


def _move(folder: Path, own: Outbox) -> int:
    other, _ = open_mended(folder)
    try:
        results = other.load()
        if results:
            own.keep(results)
            other.forget([row.token for row in results])
        return len(results)
    finally:
        other.close()


# ------------------------------------------------------------------- damage, older versions


@dataclass(frozen=True, slots=True)
class Mended:
    """What was saved of a damaged outbox; what it lacked is run again by somebody."""

    moved_to: Path
    saved: int
    damaged: int
    #: pages that could not be read: how many results were on them is not known
    damaged_pages: int


def open_mended(folder: Path) -> tuple[Outbox, Mended | None]:
    """Open an outbox; a damaged one is set aside, and a new one has what can be read of it.

    Raises:
        OutboxBrokenError: it is of a newer version.
        WorkerError: the disk is full or fails.
    """
    _finish_swap(folder)
    try:
        outbox = Outbox(folder)
        try:
            outbox.load()
        except OutboxBrokenError:
            outbox.close()
            raise
        return outbox, None
    except OutboxBrokenError:
        if _is_newer(folder / OUTBOX_NAME):
            raise
    try:
        mended = _mend(folder)
    except (apsw.Error, OSError) as error:
        raise WorkerError(f"cannot mend the outbox in {folder}: {error}") from error
    return Outbox(folder), mended


def _broken(path: Path, why: str) -> OutboxBrokenError:
    return OutboxBrokenError(f"the outbox {path} is damaged ({why})")


def _is_newer(path: Path) -> bool:
    """Tell it by the file's head: a newer one is not damaged for that."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(b"SQLite") and int.from_bytes(head[60:64], "big") > OUTBOX_VERSION


def _mend(folder: Path) -> Mended:
    """Build a new outbox of what can be read, then move the old one aside."""
    path = folder / OUTBOX_NAME
    found = Found()
    results: dict[bytes, KeptResult] = {}
    damaged = 0
    with contextlib.ExitStack() as stack:
        trees = Trees(Pages(_mapped(path, stack), _mapped(_beside(path, "-wal"), stack)))
        for row in _rows(trees, found):
            kept = _kept(row)
            damaged += kept is None
            if kept is not None:
                results.setdefault(kept.token, kept)
        del trees  # Windows moves no file that is mapped
    fresh, part = _beside(path, ".new"), folder / "mended"
    part.mkdir(exist_ok=True)
    for old in part.iterdir():
        old.unlink()
    outbox = Outbox(part)
    outbox.keep(list(results.values()))
    outbox.close()
    _sync(part / OUTBOX_NAME)
    (part / OUTBOX_NAME).replace(fresh)
    part.rmdir()
    moved_to = _finish_swap(folder)
    assert moved_to is not None
    return Mended(moved_to, len(results), damaged + found.damaged_cells, len(found.damaged_pages))


def _rows(trees: Trees, found: Found) -> Iterator[Row]:
    root = 0
    for row in trees.rows(1, Found()):
        if len(row.values) == 5 and row.values[1] == "results" and isinstance(row.values[3], int):
            root = row.values[3]
    if root:
        yield from trees.rows(root, found)
    else:
        found.damaged_pages.append(1)
    if not found.is_whole:
        yield from (row for row in trees.strays("table") if len(row.values) in (5, 6))


def _kept(row: Row) -> KeptResult | None:
    """Return the result in a row; None if it is not what was written."""
    token, broker, task, kind, payload = (row.values + [None] * 5)[:5]
    if (
        row.missing_bytes
        or not isinstance(token, bytes)
        or len(token) != _TOKEN_BYTES
        or not isinstance(broker, str)
        or not isinstance(task, str)
        or not isinstance(kind, int)
        or not isinstance(payload, bytes)
        or (len(row.values) > 5 and row.values[5] != crc32(payload))
    ):
        return None
    return KeptResult(broker, task, token, kind, payload)


def _finish_swap(folder: Path) -> Path | None:
    """Put the finished new file in the old one's place, also after a power cut in between."""
    path = folder / OUTBOX_NAME
    fresh = _beside(path, ".new")
    if not fresh.exists():
        return None
    aside = path.with_name(f"outbox-broken-{time.strftime('%Y%m%d-%H%M%S')}.db")
    for side in ("-shm", "-wal", ""):
        if _beside(path, side).exists():
            _beside(path, side).replace(_beside(aside, side))
    fresh.replace(path)
    _sync(folder)
    return aside


def _migrate(db: apsw.Connection, path: Path, version: int) -> None:
    """Bring an older outbox up to date: a copy beside it first, then one transaction."""
    copy = path.with_name(f"outbox-v{version}-{time.strftime('%Y%m%d-%H%M%S')}.db")
    part = _beside(copy, ".part")
    part.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(part),))
    _sync(part)
    part.replace(copy)
    _sync(path.parent)

    def change() -> None:
        for each in range(version, OUTBOX_VERSION):
            _STEPS[each](db)
        db.execute(f"PRAGMA user_version={OUTBOX_VERSION}")

    _at_once(db, change)


def _from_1(db: apsw.Connection) -> None:
    """Results have had no checksum."""
    db.create_scalar_function("crc_of", _crc_of, 1, deterministic=True)
    db.execute("ALTER TABLE results ADD COLUMN crc INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE results SET crc = crc_of(payload)")


def _crc_of(*payloads: apsw.SQLiteValue) -> int:
    (payload,) = payloads
    assert isinstance(payload, bytes)
    return crc32(payload)


#: version -> the step to the next one, within a transaction
_STEPS: Final[Mapping[int, Callable[[apsw.Connection], None]]] = {1: _from_1}


def _at_once(db: apsw.Connection, change: Callable[[], object]) -> None:
    """Make a change in one transaction; what is raised is what went wrong first."""
    db.execute("BEGIN IMMEDIATE")
    try:
        change()
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(apsw.Error):  # SQLite may have rolled it back itself
            db.execute("ROLLBACK")
        raise


def _beside(path: Path, side: str) -> Path:
    return path.with_name(path.name + side)


def _mapped(path: Path, stack: contextlib.ExitStack) -> memoryview:
    if not path.exists() or not path.stat().st_size:
        return memoryview(b"")
    file = stack.enter_context(path.open("rb"))
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there; the file system logs their entries
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
