"""The outbox: results that no orchestrator has acknowledged yet, on the worker's own disk.

One process holds an outbox, by a lock on a file of its own. What becomes of damaged ones, and of
those that workers left behind: `recovery.mend`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import apsw

from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.files import at_once, beside, connect
from d8mesh.edge.sqlite.migrate import Steps, migrate
from d8mesh.errors import OutboxBrokenError, WorkerError

OUTBOX_VERSION: Final = 2
OUTBOX_NAME: Final = "outbox.db"
LOCK_NAME: Final = "lock"
#: The log file is folded back into the database at about 4 MB (4 KiB pages).
OUTBOX_CHECKPOINT_PAGES: Final = 1000
#: Rows per statement; apsw takes the interpreter lock for every single one otherwise.
ROWS_AT_ONCE: Final = 64
#: The table is written anew, to wipe it, while it holds no more than this.
MAX_RENEWED_BYTES: Final = 8 * 1024 * 1024

_OUTBOX_SCHEMA: Final = """
CREATE TABLE results(
    token BLOB PRIMARY KEY, broker TEXT NOT NULL, task TEXT NOT NULL, kind INTEGER NOT NULL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_MARK: Final = f"PRAGMA user_version={OUTBOX_VERSION}"
#: What damage raises; anything else may pass: a full disk, a disk that fails.
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, apsw.SQLError)


class Outbox:
    """The results in one folder. The caller holds the folder's lock (`edge.identity`).

    What was forgotten can be made unreadable with `wipe`; a result may be somebody's answer.

    Args:
        folder: where the file lies; made if missing. For the others see `files.connect`.

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
        #: results were forgotten that can still be read from the file
        self.needs_wiping = False
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
        self.needs_wiping = True

    def wipe(self) -> bool:
        """Overwrite what is left of results that were forgotten, in the file and its log.

        The table is written anew: SQLite leaves parts of rows on pages that others moved from.
        While much is kept that is left for later, and False returned: it goes as soon as an
        orchestrator is back.

        Raises:
            WorkerError: the disk is full or fails; nothing is lost, and it is to be tried again.
        """
        try:
            sizes = self._db.execute("SELECT length(payload) FROM results")
            if sum(int(size) for (size,) in sizes) > MAX_RENEWED_BYTES:
                return False
            kept = self.load()

            def renew() -> None:
                self._db.execute("DELETE FROM results")
                self._insert(kept)

            self._commit(renew)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except apsw.Error as error:
            raise WorkerError(f"cannot wipe the outbox {self._path}: {error}") from error
        self.needs_wiping = False
        return True

    def probe(self) -> None:
        """Write something that changes nothing.

        Raises:
            WorkerError: it does not take anything now.
        """
        self._commit(lambda: self._db.execute(_MARK))

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
        # A process that was killed may have had to wipe it.
        self.needs_wiping = self.needs_wiping or beside(self._path, "-wal").exists()
        self._db = db = connect(self._path, synchronous, vfs, checkpoint_pages)
        db.execute("PRAGMA secure_delete = ON").fetchall()
        version = int(db.pragma("user_version"))
        if version > OUTBOX_VERSION:
            raise OutboxBrokenError(
                f"the outbox {self._path} is of version {version}, newer than this d8mesh "
                f"({OUTBOX_VERSION}): it is not damaged; update d8mesh"
            )
        if version == 0:
            with at_once(db):
                db.execute(_OUTBOX_SCHEMA + _MARK)
        check = db.execute("PRAGMA quick_check(1)").fetchall()
        if check != [("ok",)]:
            raise _broken(self._path, str(check[0][0]))
        if 0 < version < OUTBOX_VERSION:
            migrate(db, self._path, version, _OUTBOX_STEPS, _MARK)

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
            with at_once(self._db):
                change()
        except (apsw.Error, OSError) as error:
            self._is_doubtful = True
            raise WorkerError(f"cannot write the outbox {self._path}: {error}") from error


def _broken(path: Path, why: str) -> OutboxBrokenError:
    return OutboxBrokenError(f"the outbox {path} is damaged ({why})")


def _from_1(db: apsw.Connection) -> None:
    """Results have had no checksum."""
    db.create_scalar_function("crc_of", _crc_of, 1, deterministic=True)
    db.execute("ALTER TABLE results ADD COLUMN crc INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE results SET crc = crc_of(payload)")


def _crc_of(*payloads: apsw.SQLiteValue) -> int:
    (payload,) = payloads
    assert isinstance(payload, bytes)
    return crc32(payload)


_OUTBOX_STEPS: Final[Steps] = {1: _from_1}
