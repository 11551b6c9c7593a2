"""The outbox: results that no orchestrator has acknowledged yet, on the worker's own disk.

One process holds an outbox, by a lock on a file of its own; what a worker that is gone left
behind is adopted by the next one. SQLite comes through apsw.

Source: https://www.sqlite.org/wal.html; `filelock`
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import filelock

from d8mesh.core.worker_effects import Kept
from d8mesh.errors import WorkerError

SCHEMA_VERSION: Final = 1
OUTBOX_NAME: Final = "outbox.db"
LOCK_NAME: Final = "lock"
#: The log file is folded back into the database at about 4 MB (4 KiB pages).
CHECKPOINT_PAGES: Final = 1000
#: Rows per statement; apsw takes the interpreter lock for every single one otherwise.
ROWS_AT_ONCE: Final = 64
BUSY_MS: Final = 5000

_SCHEMA: Final = """
CREATE TABLE results(
    token BLOB PRIMARY KEY, broker TEXT NOT NULL, task TEXT NOT NULL, kind INTEGER NOT NULL,
    payload BLOB NOT NULL);
"""
_T = TypeVar("_T")


class Outbox:
    """The results in one folder. The caller holds the folder's lock (`edge.identity`).

    Args:
        folder: where the file lies; made if missing.
        synchronous: FULL; anything else only for showing that it loses.
        vfs: SQLite's way to the disk; empty: the usual one.
        checkpoint_pages: the log file is folded back when it has this many pages.

    Raises:
        WorkerError: the file is damaged or of a newer version.

    Thread: that which made it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        synchronous: str = "FULL",
        vfs: str = "",
        checkpoint_pages: int = CHECKPOINT_PAGES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / OUTBOX_NAME
        try:
            self._db = apsw.Connection(str(self._path), vfs=vfs or None)
            self._prepare(synchronous, checkpoint_pages)
        except apsw.Error as error:
            raise WorkerError(
                f"the outbox {self._path} cannot be used: {error}. Move it away to go on "
                "without the results in it"
            ) from error

    def keep(self, results: Sequence[Kept]) -> None:
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

    def load(self) -> list[Kept]:
        """Return all results in it."""
        rows: list[tuple[Any, ...]] = self._db.execute(
            "SELECT broker, task, token, kind, payload FROM results ORDER BY rowid"
        ).fetchall()
        return [Kept(*row) for row in rows]

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def _prepare(self, synchronous: str, checkpoint_pages: int) -> None:
        db = self._db
        db.set_busy_timeout(BUSY_MS)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("PRAGMA fullfsync=ON")
        db.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        version = int(db.pragma("user_version"))
        if version > SCHEMA_VERSION:
            raise WorkerError(
                f"the outbox {self._path} is of version {version}, newer than this d8mesh "
                f"({SCHEMA_VERSION}): update d8mesh"
            )
        if version == 0:
            with db:
                db.execute(_SCHEMA)
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        check = db.execute("PRAGMA quick_check(1)").fetchall()
        if check != [("ok",)]:
            raise WorkerError(f"the outbox {self._path} is damaged: move it away to go on")

    def _insert(self, results: Sequence[Kept]) -> None:
        for start in range(0, len(results), ROWS_AT_ONCE):
            some = results[start : start + ROWS_AT_ONCE]
            marks = ",".join(["(?,?,?,?,?)"] * len(some))
            values = [
                value
                for row in some
                for value in (row.token, row.broker_id, row.task_id, row.kind, row.payload)
            ]
            self._db.execute(f"INSERT OR REPLACE INTO results VALUES {marks}", values)

    def _commit(self, change: Callable[[], None]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            change()
            self._db.execute("COMMIT")
        except apsw.Error as error:
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")
            raise WorkerError(f"cannot write the outbox {self._path}: {error}") from error


def adopt(own: Outbox, workers: Path, *, own_folder: Path) -> int:
    """Move what lies in outboxes that nobody holds into `own`; return how many results.

    A file that cannot be read is left where it is.

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
    other = Outbox(folder)
    try:
        results = other.load()
        if results:
            own.keep(results)
            other.forget([row.token for row in results])
        return len(results)
    finally:
        other.close()
