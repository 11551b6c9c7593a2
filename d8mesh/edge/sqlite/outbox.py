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
from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE, kept_payload_key, payload_key_in
from d8mesh.edge.sqlite.schema import fetch
from d8mesh.edge.sqlite.seal import NO_SEAL, RESULT_COLUMN, Plain, Seal, SealError
from d8mesh.errors import OutboxBrokenError, OutboxKeyError, WorkerError
from d8mesh.private import make_file, make_folder

OUTBOX_VERSION: Final = 2
OUTBOX_NAME: Final = "outbox.db"
LOCK_NAME: Final = "lock"
#: The log file is folded back into the database at about 4 MB (4 KiB pages).
OUTBOX_CHECKPOINT_PAGES: Final = 1000
#: Rows per statement; apsw takes the interpreter lock for every single one otherwise.
ROWS_AT_ONCE: Final = 64
#: Added to the kind of a result whose payload is encrypted.
SEALED_KIND: Final = 256
#: The application's number in the file's head, when payloads are encrypted: "d8s1".
SEALED_FILE: Final = 0x64387331
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
        is_sealed: payloads are encrypted, or are not; None: as they were. A file in which it is
            the other way round is rewritten first.

    Raises:
        OutboxBrokenError: the file is damaged or of a newer version.
        OutboxKeyError: the key that opens its payloads is missing.
        KeyFileError: the key file cannot be used.
        WorkerError: the disk is full or fails.

    Thread: one at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_sealed: bool | None = None,
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
        #: what opens the payloads that are encrypted, and what new ones are kept with
        self._opener: Plain = NO_SEAL
        self._seal: Plain = NO_SEAL
        try:
            make_folder(folder)
            make_file(self._path)
            self._open()
            self._choose(is_sealed)
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
            self._renew(self.load())
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
            OutboxKeyError: it was encrypted with another key.
        """
        try:
            rows: list[tuple[Any, ...]] = self._db.execute(
                "SELECT broker, task, token, kind, payload, crc FROM results ORDER BY rowid"
            ).fetchall()
        except apsw.Error as error:
            raise _broken(self._path, str(error)) from error
        if any(crc32(row[4]) != row[5] for row in rows):
            raise _broken(self._path, "a result is not what was written")
        try:
            return [self._opened(KeptResult(*row[:5])) for row in rows]
        except SealError as error:
            raise OutboxKeyError(
                f"the outbox {self._path} was encrypted with another key than that in "
                f"{self._path.with_name(PAYLOAD_KEY_FILE)} ({error}): put the right key file "
                "there; nothing was changed"
            ) from error

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

    def _choose(self, is_sealed: bool | None) -> None:
        """Encrypt the payloads, or have them plain, from here on, and those that are there."""
        kinds = fetch(
            self._db, "SELECT kind >= ?, count(*) FROM results GROUP BY 1", (SEALED_KIND,)
        )
        found = dict(kinds)
        folder = self._path.parent
        if found.get(1):
            key = payload_key_in(folder)
            if key is None:
                raise OutboxKeyError(
                    f"the outbox {self._path} is encrypted, and the key is missing: put "
                    f"{folder / PAYLOAD_KEY_FILE} back from its copy; nothing was changed. Without "
                    f"it its results cannot be read: move {OUTBOX_NAME} away, and they are run anew"
                )
            self._opener = Seal(key)
        was_sealed = self._db.pragma("application_id") == SEALED_FILE
        if is_sealed or (is_sealed is None and (was_sealed or found.get(1))):
            self._seal = self._opener = Seal(kept_payload_key(folder))
        if is_sealed is None:
            return
        if found.get(int(not is_sealed)):
            self._renew(self.load())
        if is_sealed != was_sealed:
            self._db.pragma("application_id", SEALED_FILE if is_sealed else 0)

    def _opened(self, stored: KeptResult) -> KeptResult:
        if stored.kind < SEALED_KIND:
            return stored
        payload = self._opener.open(RESULT_COLUMN, stored.token, stored.payload)
        return stored._replace(kind=stored.kind - SEALED_KIND, payload=payload)

    def _renew(self, kept: Sequence[KeptResult]) -> None:
        """Write the table anew, so that nothing is left of what was in it, and fold the log."""

        def renew() -> None:
            self._db.execute("DELETE FROM results")
            self._insert(kept)

        self._commit(renew)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _insert(self, results: Sequence[KeptResult]) -> None:
        for start in range(0, len(results), ROWS_AT_ONCE):
            some = results[start : start + ROWS_AT_ONCE]
            marks = ",".join(["(?,?,?,?,?,?)"] * len(some))
            values: list[Any] = []
            for row in some:
                kind, payload = row.kind, row.payload
                if self._seal is not NO_SEAL:
                    kind, payload = (
                        kind + SEALED_KIND,
                        self._seal.close(RESULT_COLUMN, row.token, payload),
                    )
                values += (row.token, row.broker_id, row.task_id, kind, payload, crc32(payload))
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
