"""Facts to SQLite: one connection writes and checkpoints, one commit per batch of facts.

What a fact writes stands in `_WRITERS`. SQLite comes through apsw, which carries a current
one of its own.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from d8mesh.core.broker.store import Question, Restored, StoreAnswer
from d8mesh.core.protocol import task
from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE, FAILED_STATE
from d8mesh.edge.sqlite import restore
from d8mesh.edge.sqlite.files import at_once, beside, connect, keep_log, lengthen_log
from d8mesh.edge.sqlite.migrate import STEPS, migrate
from d8mesh.edge.sqlite.payload_key import kept_payload_key
from d8mesh.edge.sqlite.place import (
    Lock,
    broken,
    refusal,
    refuse_half_recovered,
    refuse_network_disk,
    version_of,
)
from d8mesh.edge.sqlite.reader import Reader
from d8mesh.edge.sqlite.schema import (
    CHUNKS,
    COUNTER_BITS,
    FAILURE_COLUMNS,
    MAX_SESSIONS,
    MAX_TOMBSTONES,
    SCHEMA,
    SCHEMA_VERSION,
    WAITED,
    Value,
    completed_sql,
    fetch,
    insert_sql,
    runs,
)
from d8mesh.edge.sqlite.seal import DATA_COLUMN, DIGEST_COLUMN, RESULT_COLUMN, SealError, seal_of
from d8mesh.edge.sqlite.sealing import finish_resealing, key_of, reseal
from d8mesh.edge.sqlite.texts import Texts
from d8mesh.edge.sqlite.wiper import LogWiper
from d8mesh.errors import JournalError
from d8mesh.private import make_folder

#: The log file is folded back into the database at about 16 MB (4 KiB pages).
CHECKPOINT_PAGES: Final = 4000
#: Files up to this size are checked page by page at a start; larger ones would take minutes.
QUICK_CHECK_BYTES: Final = 64 * 1024 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode


class Journal:
    """The writing connection.

    Args:
        path: the database file; its folder is made. For the others see `files.connect`.
        is_sealed: payloads are encrypted; a file in which they are not, or the other way round, is
            rewritten first.

    Raises:
        JournalHeldError: another process has it open.
        JournalBrokenError: the file is damaged, of a newer version, or on a network disk.
        JournalKeyError: the key that opens its payloads is missing, or is another one.
        KeyFileError: the key file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_sealed: bool = False,
        synchronous: str = "FULL",
        vfs: str = "",
        checkpoint_pages: int = CHECKPOINT_PAGES,
    ) -> None:
        self.path = path
        self._confirmed = 0
        self._has_failed = False
        self._reader: Reader | None = None
        make_folder(path.parent)
        self._lock = Lock(path.with_name(path.name + ".lock"))
        #: the copy of the file as it was, if it was of an older version
        self.copy: Path | None = None
        try:
            refuse_network_disk(path)
            refuse_half_recovered(path)
            finish_resealing(path)
            self._db = self._open(synchronous, vfs, checkpoint_pages)
            self._key = key_of(self._db, path)
            if is_sealed != (self._key is not None):
                self._reseal(is_sealed=is_sealed)
                self._db = self._open(synchronous, vfs, checkpoint_pages)
        except BaseException:  # also on Ctrl-C: what was taken is let go
            self._lock.close()
            raise
        self._seal = seal_of(self._key)
        #: one cursor for all that is written: the connection's own `execute` makes one each time
        self._write = self._db.cursor().execute
        self._sids: dict[str, int] = dict(self._db.execute("SELECT name, sid FROM sessions"))
        #: first row ids of the open batches: no run of outcomes reaches over one
        self._batch_starts: set[int] = {
            row[0] for row in self._db.execute("SELECT first FROM batches WHERE is_done = 0")
        }
        self._workers: dict[str, int] = dict(self._db.execute("SELECT name, worker FROM workers"))
        self._texts = Texts(self._db, self._seal)
        self._wiper = LogWiper(self._db, path, vfs, checkpoint_pages, is_needed=self._was_killed)

    # -------------------------------------------------------------------- writing

    def append(self, facts: Sequence[task.Fact]) -> None:
        """Write the facts and commit; when this returns they are on the disk.

        Raises:
            JournalError: nothing of it was written, now or before; the file must be opened anew.
        """
        if self._has_failed:
            raise JournalError(f"{self.path.name} is not written any more: a commit failed")
        kinds: defaultdict[type, list[Any]] = defaultdict(list)
        for fact in facts:
            kinds[type(fact)].append(fact)
        try:
            self._write("BEGIN IMMEDIATE")
            for kind, write in _WRITERS.items():
                if kinds.get(kind):
                    write(self, kinds[kind])
            self._write("COMMIT")
        except (apsw.Error, JournalError) as error:
            self._has_failed = True  # what is remembered of the file may not be in it
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")
            raise JournalError(f"cannot write {self.path.name}: {error}") from error
        self._confirmed += 1

    def confirmed(self) -> int:
        """Return how many commits are on the disk: all that were begun."""
        return self._confirmed

    @property
    def needs_wiping(self) -> bool:
        """True while what was erased may still be read in the log."""
        return self._wiper.is_pending

    def wipe(self) -> bool:
        """Do a step of wiping the log; return whether it was the last.

        Raises:
            JournalError: the disk is full or fails; nothing is lost, and it is to be tried again.
        """
        try:
            return self._wiper.wipe()
        except (apsw.Error, OSError) as error:
            raise JournalError(f"cannot wipe the log of {self.path.name}: {error}") from error

    def ask(self, question: Question) -> StoreAnswer:
        """Answer from what is on the disk; see `Reader`."""
        if self._reader is None:
            self._reader = Reader(self.path, seal_of(self._key))
        return self._reader.ask(question)

    def _submitted(self, facts: list[task.Submitted]) -> None:
        encode = _encode
        values: list[Value] = []
        count = 0
        for fact in facts:
            size = sum(map(len, fact.payloads))
            n = len(fact.payloads)
            first = self._row_of(fact.session, fact.first)
            self._batch_starts.add(first)
            spec = encode(fact.spec)
            values += (None, first, n, spec, fact.spec.type, fact.at, size, 0)
            values.append(encode(self._seal.close_all(DATA_COLUMN, first, fact.payloads)))
            if fact.spec.source:
                self._texts.open(first, n)
            count += n
            if fact.key:
                digest = self._seal.close(DIGEST_COLUMN, first, fact.digest)
                self._insert("keys", [fact.key, digest, first, fact.key_count], width=4)
        self._insert("batches", values, width=9)
        self._write("UPDATE totals SET submitted = submitted + ? WHERE id = 1", (count,))

    def _handed_out(self, facts: list[task.Assigned]) -> None:
        values: list[Value] = []
        for fact in facts:
            tasks = _encode((self._rows_of(fact.ids), fact.ns))
            values += (fact.number, self._worker(fact.worker_id), fact.at, tasks)
        self._insert("handouts", values, width=4)

    def _requeued(self, facts: list[task.Requeued]) -> None:
        values: list[Value] = []
        for fact in facts:
            worker = self._worker(fact.worker_id)
            flags = (int(fact.is_counted), int(fact.is_loss))
            pause_s = max(0.0, fact.not_before_at - fact.at) if fact.not_before_at else 0.0
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                why = self._seal.close_text(row, fact.why)
                traceback = self._seal.close_text(row, fact.traceback) or None
                values += (row, n, worker, fact.at, *flags, why, fact.returned, pause_s, traceback)
        self._insert("failures", values, width=FAILURE_COLUMNS)

    def _recounted(self, facts: list[task.Recounted]) -> None:
        for fact in facts:
            worker, is_loss = self._worker(fact.worker_id), int(fact.is_loss)
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                self._write(
                    "UPDATE failures SET is_counted = ?, is_loss = ? WHERE rowid = (SELECT"
                    " max(rowid) FROM failures WHERE row = ? AND n = ? AND worker = ?"
                    " AND is_loss <> ?)",
                    (is_loss, is_loss, row, n, worker, is_loss),
                )

    def _completed(self, facts: list[task.Completed]) -> None:
        values: list[Value] = []
        done: dict[int, int] = {}
        workers, sids, encode = self._workers, self._sids, _encode
        for fact in facts:
            worker = workers.get(fact.worker_id) or self._worker(fact.worker_id)
            ids = fact.ids
            done[worker] = done.get(worker, 0) + len(ids)
            if len(ids) == 1:  # what workers with one slot send, by the hundred
                row = (sids[ids[0][:16]] << COUNTER_BITS) + int(ids[0][17:])
                values += (row, 1, COMPLETED_STATE, fact.ns[0], worker, fact.at)
                values.append(encode(self._texts.stored(row, fact.payloads)))
            else:
                values += self._runs(fact, state=COMPLETED_STATE, worker=worker)
        self._insert("outcomes", values, width=7)
        total = sum(done.values())
        self._write("UPDATE totals SET completed = completed + ? WHERE id = 1", (total,))
        self._in_chunks(completed_sql, list(chain.from_iterable(done.items())), width=2)

    def _failed(self, facts: list[task.Failed]) -> None:
        for fact in facts:
            worker = self._worker(fact.worker_id) if fact.worker_id else None
            self._insert("outcomes", self._runs(fact, state=FAILED_STATE, worker=worker), width=7)
            values: list[Value] = []
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                why = self._seal.close_text(row, fact.why)
                values += (row, n, worker, fact.at, 1, 0, why, 0, 0.0, None)
            self._insert("failures", values, width=FAILURE_COLUMNS)
            count = len(fact.ids)
            self._write("UPDATE totals SET failed = failed + ?", (count,))
            if worker is not None:
                self._write(
                    "UPDATE workers SET failed = failed + ? WHERE worker = ?", (count, worker)
                )

    def _cancelled(self, facts: list[task.Cancelled]) -> None:
        for fact in facts:
            self._insert("outcomes", self._runs(fact, state=CANCELLED_STATE, worker=None), width=7)
            self._write("UPDATE totals SET cancelled = cancelled + ?", (len(fact.ids),))

    def _runs(
        self, fact: task.Completed | task.Failed | task.Cancelled, *, state: int, worker: int | None
    ) -> list[Value]:
        """Return rows of `outcomes`, one for each run of consecutive tasks and equal attempt."""
        rows, ns = self._rows_of(fact.ids), fact.ns
        values: list[Value] = []
        for start, end in runs(rows, ns, self._batch_starts):
            values += (rows[start], end - start, state, ns[start], worker, fact.at)
            values.append(_encode(self._texts.stored(rows[start], fact.payloads[start:end])))
        return values

    def _erasure_set(self, facts: list[task.ErasureSet]) -> None:
        for fact in facts:
            for row, rest in zip(self._rows_of(fact.ids), fact.payloads, strict=True):
                values = (row, fact.due_at, self._seal.close(RESULT_COLUMN, row, rest))
                self._write("INSERT OR IGNORE INTO erasures VALUES (?, ?, ?)", values)

    def _erased(self, facts: list[task.Erased]) -> None:
        for fact in facts:
            for row, given in zip(self._rows_of(fact.ids), fact.payloads, strict=True):
                was_set = fetch(self._db, "SELECT rest FROM erasures WHERE row = ?", (row,))
                if was_set:
                    self._write("DELETE FROM erasures WHERE row = ?", (row,))
                rest = self._seal.close(RESULT_COLUMN, row, given)
                if self._texts.erase(row, rest or (was_set[0][0] if was_set else b"")):
                    self._wiper.is_needed = True

    def _enrolled(self, facts: list[task.Enrolled]) -> None:
        for fact in facts:
            self._write(
                "UPDATE workers SET type = ?, capabilities = ? WHERE worker = ?",
                (fact.worker_type, fact.capabilities, self._worker(fact.worker_id)),
            )

    def _dismissed(self, facts: list[task.Dismissed]) -> None:
        for fact in facts:
            worker = self._worker(fact.worker_id)
            self._write("UPDATE workers SET capabilities = NULL WHERE worker = ?", (worker,))

    def _closed(self, facts: list[task.Closed]) -> None:
        for fact in facts:
            firsts = [self._row_of(session, first) for session, first in fact.batches]
            self._batch_starts.difference_update(firsts)
            self._texts.close(firsts)
            for start in range(0, len(firsts), CHUNKS[0]):
                part = firsts[start : start + CHUNKS[0]]
                marks = ",".join("?" * len(part))
                self._write(f"UPDATE batches SET is_done = 1 WHERE first IN ({marks})", part)

    def _settled(self, facts: list[task.AssignmentsSettled]) -> None:
        self._write("DELETE FROM handouts WHERE number < ?", (facts[-1].below,))

    def _missed(self, facts: list[task.WorkersMissed]) -> None:
        waited = _encode(dict(zip(facts[-1].worker_ids, facts[-1].waited_s, strict=True)))
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (WAITED, waited))

    def _pruned(self, facts: list[task.Pruned]) -> None:
        for fact in facts:
            for session, n, count in fact.batches:
                first = self._row_of(session, n)
                reach = (first, first + count)
                self._wiper.is_needed |= self._texts.prune(reach)
                self._write("DELETE FROM outcomes WHERE first >= ? AND first < ?", reach)
                self._write("DELETE FROM failures WHERE row >= ? AND row < ?", reach)
                self._write("DELETE FROM keys WHERE first = ?", (first,))
                self._write("DELETE FROM batches WHERE first = ?", (first,))
                self._insert("pruned", [None, first, count, fact.at], width=4)
                self._write("UPDATE totals SET pruned = pruned + ?", (count,))
            self._write(
                "DELETE FROM pruned WHERE number <= (SELECT max(number) FROM pruned) - ?",
                (MAX_TOMBSTONES,),
            )
        self._write("PRAGMA secure_delete = FAST")

    # ------------------------------------------------------------------- starting

    def restore(self) -> Restored:
        """Raise the epoch, durably, and return the state to go on from.

        Raises:
            JournalBrokenError: rows are damaged, or contradict each other.
            JournalError: the disk is full or fails.
        """
        try:
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
            epoch = meta["epoch"] + 1
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
            restored = Restored(epoch, meta["secret"], max_sessions=MAX_SESSIONS)
            restore.fill(self._db, restored, self._seal)
        except restore.UNREADABLE as error:
            raise refusal(self.path, error) from error
        return restored

    @property
    def broker_id(self) -> str:
        """The stable id of this orchestrator, made with the file."""
        rows = self._db.execute("SELECT value FROM meta WHERE name = 'broker_id'").fetchall()
        return str(rows[0][0])

    # ---------------------------------------------------------------- the file itself

    def free_bytes(self) -> int:
        """Return how much room the disk of the journal has."""
        return shutil.disk_usage(self.path.parent).free

    def close(self) -> None:
        """Fold the log back, remove it, and let the file go.

        A log that stayed would be laid over whatever is put in the file's place: a backup.
        """
        if self._reader is not None:
            self._reader.close()
        with contextlib.suppress(apsw.Error):
            keep_log(self._db, is_kept=False)
            self._db.close()
        self._lock.close()

    def _open(self, synchronous: str, vfs: str, checkpoint_pages: int) -> apsw.Connection:
        try:
            self._was_killed = beside(self.path, "-wal").exists()
            db = connect(self.path, synchronous, vfs, checkpoint_pages)
            db.execute("PRAGMA secure_delete = FAST").fetchall()  # see `texts`
            # Without a table: new, or the power went while it was made, before any promise.
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchall()[0][0]:
                self._create(db)
            self._check(db)
            keep_log(db)
            lengthen_log(self.path, vfs, checkpoint_pages)
        except (apsw.Error, OSError) as error:
            raise refusal(self.path, error) from error
        return db

    def _reseal(self, *, is_sealed: bool) -> None:
        """Encrypt the payloads of the file, or have them plain again; it is closed after that."""
        before, self._key = self._key, kept_payload_key(self.path.parent) if is_sealed else None
        try:
            keep_log(self._db, is_kept=False)
            self._db.close()
            reseal(self.path, before, self._key)
        except (apsw.Error, OSError, SealError) as error:
            raise refusal(self.path, error) from error

    @staticmethod
    def _create(db: apsw.Connection) -> None:
        with at_once(db):
            db.execute(SCHEMA)
            for name, value in (
                ("schema", SCHEMA_VERSION),
                ("epoch", 0),
                ("secret", secrets.token_bytes(32)),
                ("broker_id", "orch-" + secrets.token_hex(5)),
                ("created_at", time.time()),
            ):
                db.execute("INSERT INTO meta VALUES (?, ?)", (name, value))
        # From here on a file without tables has lost its log and is not taken for a new one.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _check(self, db: apsw.Connection) -> None:
        version = version_of(db, self.path)
        if version < 1:
            raise broken(self.path, "it names no version")
        if self.path.stat().st_size <= QUICK_CHECK_BYTES:
            verdict = db.execute("PRAGMA quick_check(1)").fetchall()[0][0]
            if verdict != "ok":
                raise broken(self.path, str(verdict))
        if version < SCHEMA_VERSION:
            mark = f"UPDATE meta SET value = {SCHEMA_VERSION} WHERE name = 'schema'"
            self.copy = migrate(db, self.path, version, STEPS, mark)

    # --------------------------------------------------------------------- helpers

    def _insert(self, table: str, values: list[Value], *, width: int) -> None:
        """Insert rows of `width` columns given as one flat list."""
        if len(values) == width:  # what a lone task writes
            self._write(insert_sql(table, width, 1), values)
        else:
            self._in_chunks(partial(insert_sql, table, width), values, width=width)

    def _in_chunks(self, sql: Callable[[int], str], values: list[Value], *, width: int) -> None:
        """Run multi-row statements, `sql` of the number of rows, over one flat list of values."""
        start, left = 0, len(values) // width
        for rows in CHUNKS:
            while left >= rows:
                end = start + rows * width
                self._write(sql(rows), values[start:end])
                start, left = end, left - rows

    def _row_of(self, session: str, n: int) -> int:
        sid = self._sids.get(session)
        if sid is None:
            sid = len(self._sids) + 1
            if sid > MAX_SESSIONS:
                raise JournalError(f"{self.path.name} names {MAX_SESSIONS} sessions: start a new")
            self._write("INSERT INTO sessions VALUES (?, ?)", (sid, session))
            self._sids[session] = sid
        return sid << COUNTER_BITS | n

    def _rows_of(self, ids: Sequence[str]) -> list[int]:
        sids, shift = self._sids, COUNTER_BITS
        if len(ids) == 1:
            return [(sids[ids[0][:16]] << shift) + int(ids[0][17:])]
        return [(sids[i[:16]] << shift) + int(i[17:]) for i in ids]

    def _worker(self, name: str) -> int:
        number = self._workers.get(name)
        if number is None:
            number = len(self._workers) + 1
            self._write("INSERT INTO workers(worker, name) VALUES (?, ?)", (number, name))
            self._workers[name] = number
        return number


#: What each fact writes, in the order of writing within a commit. Facts that only tell
#: memory something (Due, Adopted) are not here.
_WRITERS: Final[dict[type, Callable[..., None]]] = {
    task.Submitted: Journal._submitted,
    task.Assigned: Journal._handed_out,
    task.Requeued: Journal._requeued,
    task.Recounted: Journal._recounted,
    task.Completed: Journal._completed,
    task.Failed: Journal._failed,
    task.Cancelled: Journal._cancelled,
    task.Enrolled: Journal._enrolled,
    task.Dismissed: Journal._dismissed,
    task.Closed: Journal._closed,
    task.ErasureSet: Journal._erasure_set,
    task.Erased: Journal._erased,
    task.AssignmentsSettled: Journal._settled,
    task.WorkersMissed: Journal._missed,
    task.Pruned: Journal._pruned,
}
