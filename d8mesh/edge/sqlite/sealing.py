"""The payloads of a journal encrypted, or plain again: the file rewritten once, at a start.

A new file is built beside the old one, which is only read. When the new one is on the disk, the two
change places; then the old one is overwritten and deleted. Killed at any point, the next start goes
on, or begins again, by what lies there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw
import msgspec

from d8mesh.edge.sqlite.files import SIDES, WRITE_BYTES, beside, sync
from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE, payload_key_in
from d8mesh.edge.sqlite.schema import SCHEMA, SEAL_NAME, fetch
from d8mesh.edge.sqlite.seal import (
    CHECK_COLUMN,
    DATA_COLUMN,
    DIGEST_COLUMN,
    RESULT_COLUMN,
    Plain,
    Seal,
    SealError,
    seal_of,
)
from d8mesh.edge.sqlite.texts import (
    ERASED_ONLY,
    as_text,
    is_reference,
    number_in,
    text_in,
)
from d8mesh.errors import JournalKeyError
from d8mesh.private import make_file

#: Behind the name of a journal: the new file while it is built, the old one until it is deleted.
FRESH_SUFFIX: Final = ".resealing"
OLD_SUFFIX: Final = ".resealed"
_CHECKED: Final = b"d8mesh"
#: In the order of copying: what refers to texts comes before them.
_COPIED: Final = (
    *("sessions", "batches", "outcomes", "handouts", "failures", "workers", "totals", "keys"),
    *("pruned", "texts", "erasures"),
)
_TableRow: TypeAlias = tuple[Any, ...]


def key_of(db: apsw.Connection, path: Path) -> bytes | None:
    """Return the key of a journal's payloads; None if they are not encrypted.

    Raises:
        JournalKeyError: the key is missing, or is another one.
        KeyFileError: the key file cannot be used.
    """
    found = fetch(db, "SELECT value FROM meta WHERE name = ?", (SEAL_NAME,))
    if not found:
        return None
    key = required_key(path)
    if not is_key_of(Seal(key), found[0][0]):
        raise JournalKeyError(
            f"{path}: its payloads were encrypted with another key than that in "
            f"{path.with_name(PAYLOAD_KEY_FILE)}: put the right key file there; nothing was changed"
        )
    return key


def required_key(path: Path) -> bytes:
    """Return the key beside a journal.

    Raises:
        JournalKeyError: there is none.
        KeyFileError: the key file cannot be used.
    """
    key = payload_key_in(path.parent)
    if key is None:
        raise JournalKeyError(
            f"{path}: its payloads are encrypted, and the key is missing: put "
            f"{path.with_name(PAYLOAD_KEY_FILE)} back from its copy; nothing was changed. Without "
            "the key they cannot be read: to begin anew, move the journal away"
        )
    return key


def check_of(seal: Plain) -> bytes:
    """Return what stands in `meta` to tell this key from another."""
    return seal.close(CHECK_COLUMN, b"", _CHECKED)


def is_key_of(seal: Plain, check: object) -> bool:
    """Return whether `check` was made with the same key."""
    with contextlib.suppress(SealError):
        return isinstance(check, bytes) and seal.open(CHECK_COLUMN, b"", check) == _CHECKED
    return False


def finish_resealing(path: Path) -> None:
    """Bring to its end what a process was killed in.

    Raises:
        OSError: the disk fails.
    """
    fresh, old = beside(path, FRESH_SUFFIX), beside(path, OLD_SUFFIX)
    if old.exists() and not path.exists():
        (fresh if fresh.exists() else old).replace(path)
        sync(path.parent)
    if fresh.exists():
        _overwrite(fresh)
    if old.exists():
        _overwrite(old)


def reseal(path: Path, before: bytes | None, after: bytes | None) -> None:
    """Rewrite a journal that nobody has open, and that has no log, for another key or none.

    Raises:
        apsw.Error, OSError: a full disk, or a damaged file; the file is as it was.
        SealError: a payload cannot be opened; the file is as it was.
    """
    fresh, old = beside(path, FRESH_SUFFIX), beside(path, OLD_SUFFIX)
    make_file(fresh)
    try:
        _build(path, fresh, _Resealing(seal_of(before), seal_of(after)))
        sync(fresh)
    except BaseException:  # also on Ctrl-C: nothing half done may lie there
        fresh.unlink(missing_ok=True)
        raise
    for side in SIDES:  # empty ones, of a file that was only read
        if side:
            beside(path, side).unlink(missing_ok=True)
    path.replace(old)
    sync(path.parent)
    fresh.replace(path)
    sync(path.parent)
    _overwrite(old)


def _build(path: Path, fresh: Path, change: _Resealing) -> None:
    with contextlib.ExitStack() as stack:
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        stack.callback(source.close)
        source.execute("PRAGMA query_only = ON")
        target = apsw.Connection(str(fresh))
        stack.callback(target.close)
        target.execute("PRAGMA journal_mode = OFF").fetchall()
        target.execute("PRAGMA synchronous = OFF")
        target.execute(SCHEMA)
        target.execute("CREATE TEMP TABLE owners(number INTEGER PRIMARY KEY, row INTEGER)")
        target.execute("BEGIN")
        change.target = target
        target.execute("DELETE FROM totals")
        for name, value in fetch(source, "SELECT name, value FROM meta"):
            if name != SEAL_NAME:
                target.execute("INSERT INTO meta VALUES (?, ?)", (name, value))
        if isinstance(change.after, Seal):
            check = (SEAL_NAME, check_of(change.after))
            target.execute("INSERT INTO meta VALUES (?, ?)", check)
        for table in _COPIED:
            _copy(table, source, target, change.changes.get(table, _as_it_is))
        target.execute("COMMIT")
        target.execute("PRAGMA journal_mode = WAL").fetchall()


def _copy(
    table: str,
    source: apsw.Connection,
    target: apsw.Connection,
    changed: Callable[[_TableRow], _TableRow | None],
) -> None:
    names = [row[1] for row in fetch(target, f"PRAGMA table_info({table})")]
    order = "key" if table == "keys" else "rowid"
    insert = f"INSERT INTO {table} VALUES ({','.join('?' * len(names))})"
    for row in source.execute(f"SELECT {','.join(names)} FROM {table} ORDER BY {order}"):
        new = changed(row)
        if new is not None:
            target.execute(insert, new)


def _as_it_is(row: _TableRow) -> _TableRow:
    return row


class _Resealing:
    """What becomes of the rows of each table, as they come in the order of `_COPIED`."""

    target: apsw.Connection

    def __init__(self, before: Plain, after: Plain) -> None:
        self._before, self.after = before, after
        self.changes: dict[str, Callable[[_TableRow], _TableRow | None]] = {
            "batches": self._batch,
            "outcomes": self._outcome,
            "failures": self._failure,
            "keys": self._key,
            "texts": self._text,
            "erasures": self._erasure,
        }

    def _new(self, column: bytes, row: int, stored: bytes) -> bytes:
        return self.after.close(column, row, self._before.open(column, row, stored))

    def _batch(self, row: _TableRow) -> _TableRow:
        payloads = [  # all zeros: it was erased
            stored if not any(stored) else self._new(DATA_COLUMN, each, stored)
            for each, stored in enumerate(_list(row[8]), row[1])
        ]
        return (*row[:8], msgspec.msgpack.encode(payloads))

    def _outcome(self, row: _TableRow) -> _TableRow:
        results = []
        for each, stored in enumerate(_list(row[6]), row[0]):
            if is_reference(stored):
                owner = (number_in(stored), each)
                self.target.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", owner)
                results.append(stored)
            else:
                results.append(self._new(RESULT_COLUMN, each, stored))
        return (*row[:6], msgspec.msgpack.encode(results))

    def _failure(self, row: _TableRow) -> _TableRow:
        return (*row[:6], self._reason(row[0], row[6]), *row[7:9], self._reason(row[0], row[9]))

    def _reason(self, row: int, text: str | None) -> str | None:
        if not text or not text.strip():
            return text
        return self.after.close_text(row, self._before.open_text(row, text))

    def _key(self, row: _TableRow) -> _TableRow:
        return (row[0], self._new(DIGEST_COLUMN, row[2], row[1]), *row[2:])

    def _text(self, row: _TableRow) -> _TableRow | None:
        owner = fetch(self.target, "SELECT row FROM owners WHERE number = ?", row[:1])
        if not owner:
            return None  # nothing refers to it
        stored, was_erased = text_in(row[1])
        if not (was_erased and stored == ERASED_ONLY):
            stored = self._new(RESULT_COLUMN, owner[0][0], stored)
        return (row[0], as_text(stored, is_erased=was_erased))

    def _erasure(self, row: _TableRow) -> _TableRow:
        return (*row[:2], self._new(RESULT_COLUMN, row[0], row[2]))


def _list(blob: bytes) -> list[bytes]:
    return msgspec.msgpack.decode(blob, type=list[bytes])


def _overwrite(path: Path) -> None:
    """Delete a file, and before that overwrite it: on a disk that writes in place nothing stays."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for start in range(0, size, WRITE_BYTES):
            file.write(bytes(min(WRITE_BYTES, size - start)))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync(path.parent)
