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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol.task import (
    MAX_SESSIONS,
    Assigned,
    AssignmentsSettled,
    Cancelled,
    Closed,
    Completed,
    Dismissed,
    Enrolled,
    Fact,
    Failed,
    Pruned,
    Recounted,
    Requeued,
    Submitted,
    WorkersMissed,
)
from d8mesh.edge.sqlite import log_file, restore
from d8mesh.edge.sqlite.migrate import migrate
from d8mesh.edge.sqlite.place import (
    Lock,
    broken,
    refusal,
    refuse_half_recovered,
    refuse_network_disk,
)
from d8mesh.edge.sqlite.schema import (
    CANCELLED,
    CHUNKS,
    COMPLETED,
    COUNTER_BITS,
    FAILED,
    FAILURE_COLUMNS,
    MAX_TOMBSTONES,
    SCHEMA,
    SCHEMA_VERSION,
    WAITED,
    Runs,
    Value,
    at_once,
    completed_sql,
    insert_sql,
)
from d8mesh.errors import JournalBrokenError, JournalError

#: The log file is folded back into the database at about 16 MB (4 KiB pages).
CHECKPOINT_PAGES: Final = 4000
#: Files up to this size are checked page by page at a start; larger ones would take minutes.
QUICK_CHECK_BYTES: Final = 64 * 1024 * 1024
#: What ends tasks.
ENDS: Final = (Completed, Failed, Cancelled)
#: How long a statement waits for a checkpoint of another connection.
BUSY_MS: Final = 5000
_encode: Final = msgspec.msgpack.Encoder().encode


class Journal:
    """The writing connection.

    Args:
        path: the database file; its folder is made.
        synchronous: FULL; anything else only for showing that it loses.
        vfs: SQLite's way to the disk; empty: the usual one.
        checkpoint_pages: the log file is folded back when it has this many pages.

    Raises:
        JournalHeldError: another process has it open.
        JournalBrokenError: the file is damaged, of a newer version, or on a network disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "FULL",
        vfs: str = "",
        checkpoint_pages: int = CHECKPOINT_PAGES,
    ) -> None:
        self.path = path
        #: hand-outs that are not written yet: of several tasks; of single ones by task, those
        #: since the last time that was due and those before it
        self._late: list[Assigned] = []
        self._young: dict[str, Assigned] = {}
        self._old: dict[str, Assigned] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(path.with_name(path.name + ".lock"))
        #: the copy of the file as it was, if it was of an older version
        self.copy: Path | None = None
        try:
            refuse_network_disk(path)
            refuse_half_recovered(path)
            self._db = self._open(synchronous, vfs, checkpoint_pages)
        except BaseException:  # also on Ctrl-C: what was taken is let go
            self._lock.close()
            raise
        #: one cursor for all that is written: the connection's own `execute` makes one each time
        self._write = self._db.cursor().execute
        self._sids: dict[str, int] = dict(self._db.execute("SELECT name, sid FROM sessions"))
        #: first row ids of the open batches: no run of outcomes reaches over one
        self._batch_starts: set[int] = {
            row[0] for row in self._db.execute("SELECT first FROM batches WHERE is_done = 0")
        }
        self._workers: dict[str, int] = dict(self._db.execute("SELECT name, worker FROM workers"))

    # -------------------------------------------------------------------- writing

    def append(self, facts: Sequence[Fact], *, is_due: bool = False) -> None:
        """Write the facts and commit; when this returns they are on the disk.

        Args:
            facts: what happened.
            is_due: hand-outs that have waited since the last time this was so are written too.

        Raises:
            JournalError: nothing of it was written; the file must be opened anew.
        """
        kinds: defaultdict[type, list[Any]] = defaultdict(list)
        for fact in facts:
            kinds[type(fact)].append(fact)
        kinds[Assigned] = self._take_turns(kinds, is_due=is_due)
        if not any(kinds.values()):
            return
        try:
            self._write("BEGIN IMMEDIATE")
            for kind, write in _WRITERS.items():
                if kinds.get(kind):
                    write(self, kinds[kind])
            self._write("COMMIT")
        except apsw.Error as error:
            self._late, self._young, self._old = [], {}, {}  # their tasks may be nobody's
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")
            raise JournalError(f"cannot write {self.path.name}: {error}") from error

    @property
    def owes(self) -> bool:
        """Whether hand-outs wait to be written."""
        return bool(self._late or self._young or self._old)

    def _take_turns(self, kinds: dict[type, list[Any]], *, is_due: bool) -> list[Assigned]:
        """Return the hand-outs to be written now; the others' turn comes later.

        A hand-out is awaited by nobody, and that of a single task is worth nothing once the task
        is finished: most are by then. Without it a task may run once more after a crash.
        """
        now, self._late = self._late, []
        for fact in kinds.get(Assigned, ()):
            if fact.is_needed:
                now.append(fact)
            elif len(fact.ids) == 1:
                self._young[fact.ids[0]] = fact
            else:
                self._late.append(fact)
        if self._young or self._old:
            for task_id in _ended(kinds):
                self._young.pop(task_id, None)
                self._old.pop(task_id, None)
        if is_due:
            now += self._old.values()
            self._old, self._young = self._young, {}
        return now

    def _submitted(self, facts: list[Submitted]) -> None:
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
            values.append(encode(fact.payloads))
            count += n
            if fact.key:
                self._insert("keys", [fact.key, fact.digest, first, fact.key_count], width=4)
        self._insert("batches", values, width=9)
        self._write("UPDATE totals SET submitted = submitted + ? WHERE id = 1", (count,))

    def _handed_out(self, facts: list[Assigned]) -> None:
        values: list[Value] = []
        for fact in facts:
            tasks = _encode((self._rows_of(fact.ids), fact.ns))
            values += (fact.number, self._worker(fact.worker_id), fact.at, tasks)
        self._insert("handouts", values, width=4)

    def _requeued(self, facts: list[Requeued]) -> None:
        values: list[Value] = []
        for fact in facts:
            worker = self._worker(fact.worker_id)
            flags = (int(fact.is_counted), int(fact.is_loss), fact.why)
            pause_s = max(0.0, fact.not_before_at - fact.at) if fact.not_before_at else 0.0
            rest = (fact.returned, pause_s, fact.traceback or None)
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                values += (row, n, worker, fact.at, *flags, *rest)
        self._insert("failures", values, width=FAILURE_COLUMNS)

    def _recounted(self, facts: list[Recounted]) -> None:
        for fact in facts:
            worker, is_loss = self._worker(fact.worker_id), int(fact.is_loss)
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                self._write(
                    "UPDATE failures SET is_counted = ?, is_loss = ? WHERE rowid = (SELECT"
                    " max(rowid) FROM failures WHERE row = ? AND n = ? AND worker = ?"
                    " AND is_loss <> ?)",
                    (is_loss, is_loss, row, n, worker, is_loss),
                )

    def _completed(self, facts: list[Completed]) -> None:
        values: list[Value] = []
        done: dict[int, int] = {}
        workers, sids, encode = self._workers, self._sids, _encode
        for fact in facts:
            worker = workers.get(fact.worker_id) or self._worker(fact.worker_id)
            ids = fact.ids
            done[worker] = done.get(worker, 0) + len(ids)
            if len(ids) == 1:  # what workers with one slot send, by the hundred
                row = (sids[ids[0][:16]] << COUNTER_BITS) + int(ids[0][17:])
                values += (row, 1, COMPLETED, fact.ns[0], worker, fact.at, encode(fact.payloads))
            else:
                values += self._runs(fact, state=COMPLETED, worker=worker)
        self._insert("outcomes", values, width=7)
        total = sum(done.values())
        self._write("UPDATE totals SET completed = completed + ? WHERE id = 1", (total,))
        self._in_chunks(completed_sql, list(chain.from_iterable(done.items())), width=2)

    def _failed(self, facts: list[Failed]) -> None:
        for fact in facts:
            worker = self._worker(fact.worker_id) if fact.worker_id else None
            self._insert("outcomes", self._runs(fact, state=FAILED, worker=worker), width=7)
            values: list[Value] = []
            for row, n in zip(self._rows_of(fact.ids), fact.ns, strict=True):
                values += (row, n, worker, fact.at, 1, 0, fact.why, 0, 0.0, None)
            self._insert("failures", values, width=FAILURE_COLUMNS)
            count = len(fact.ids)
            self._write("UPDATE totals SET failed = failed + ?", (count,))
            if worker is not None:
                self._write(
                    "UPDATE workers SET failed = failed + ? WHERE worker = ?", (count, worker)
                )

    def _cancelled(self, facts: list[Cancelled]) -> None:
        for fact in facts:
            self._insert("outcomes", self._runs(fact, state=CANCELLED, worker=None), width=7)
            self._write("UPDATE totals SET cancelled = cancelled + ?", (len(fact.ids),))

    def _runs(
        self, fact: Completed | Failed | Cancelled, *, state: int, worker: int | None
    ) -> list[Value]:
        """Return rows of `outcomes`, one for each run of consecutive tasks and equal attempt."""
        rows, ns, payloads = self._rows_of(fact.ids), fact.ns, fact.payloads
        encode = _encode
        if len(rows) == 1:
            return [rows[0], 1, state, ns[0], worker, fact.at, encode(payloads)]
        values: list[Value] = []
        for start, end in Runs(rows, self._batch_starts).slices(len(rows)):
            while start < end:  # nearly always once: attempts of one run differ seldom
                n = ns[start]
                stop = start + 1
                while stop < end and ns[stop] == n:
                    stop += 1
                values += (rows[start], stop - start, state, n, worker, fact.at)
                values.append(encode(payloads[start:stop]))
                start = stop
        return values

    def _enrolled(self, facts: list[Enrolled]) -> None:
        for fact in facts:
            self._write(
                "UPDATE workers SET type = ?, capabilities = ? WHERE worker = ?",
                (fact.worker_type, fact.capabilities, self._worker(fact.worker_id)),
            )

    def _dismissed(self, facts: list[Dismissed]) -> None:
        for fact in facts:
            worker = self._worker(fact.worker_id)
            self._write("UPDATE workers SET capabilities = NULL WHERE worker = ?", (worker,))

    def _closed(self, facts: list[Closed]) -> None:
        for fact in facts:
            firsts = [self._row_of(session, first) for session, first in fact.batches]
            self._batch_starts.difference_update(firsts)
            for start in range(0, len(firsts), CHUNKS[0]):
                part = firsts[start : start + CHUNKS[0]]
                marks = ",".join("?" * len(part))
                self._write(f"UPDATE batches SET is_done = 1 WHERE first IN ({marks})", part)

    def _settled(self, facts: list[AssignmentsSettled]) -> None:
        self._write("DELETE FROM handouts WHERE number < ?", (facts[-1].below,))

    def _missed(self, facts: list[WorkersMissed]) -> None:
        waited = _encode(dict(zip(facts[-1].worker_ids, facts[-1].waited_s, strict=True)))
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (WAITED, waited))

    def _pruned(self, facts: list[Pruned]) -> None:
        for fact in facts:
            for session, n, count in fact.batches:
                first = self._row_of(session, n)
                reach = (first, first + count)
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
            restored = Restored(epoch, meta["secret"])
            restore.fill(self._db, restored)
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
        with contextlib.suppress(apsw.Error, JournalError):
            self.append([], is_due=True)
            self.append([], is_due=True)
            log_file.keep(self._db, is_kept=False)
            self._db.close()
        self._lock.close()

    def _open(self, synchronous: str, vfs: str, checkpoint_pages: int) -> apsw.Connection:
        try:
            db = apsw.Connection(str(self.path), vfs=vfs or None)
            db.set_busy_timeout(BUSY_MS)
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute("PRAGMA fullfsync = ON")
            db.execute("PRAGMA checkpoint_fullfsync = ON")
            db.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}").fetchall()
            # Without a table: new, or the power went while it was made, before any promise.
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchall()[0][0]:
                self._create(db)
            self._check(db)
            log_file.keep(db)
            log_file.lengthen(self.path, vfs, checkpoint_pages)
        except (apsw.Error, OSError) as error:
            raise refusal(self.path, error) from error
        return db

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
        found = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchall()
        version = found[0][0] if found else None
        if not isinstance(version, int) or version < 1:
            raise broken(self.path, "it names no version")
        if version > SCHEMA_VERSION:
            raise JournalBrokenError(
                f"{self.path} has schema version {version}, this d8mesh knows {SCHEMA_VERSION}: "
                "it is not damaged; use the d8mesh that wrote it, or a newer one"
            )
        if self.path.stat().st_size <= QUICK_CHECK_BYTES:
            verdict = db.execute("PRAGMA quick_check(1)").fetchall()[0][0]
            if verdict != "ok":
                raise broken(self.path, str(verdict))
        if version < SCHEMA_VERSION:
            self.copy = migrate(db, self.path, version)

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


def _ended(kinds: dict[type, list[Any]]) -> Iterator[str]:
    """Yield the ids of the tasks that these facts end."""
    for kind in ENDS:
        for fact in kinds.get(kind, ()):
            yield from fact.ids


#: What each fact writes, in the order of writing within a commit. Facts that only tell
#: memory something (Due, Adopted) are not here.
_WRITERS: Final[dict[type, Callable[..., None]]] = {
    Submitted: Journal._submitted,
    Assigned: Journal._handed_out,
    Requeued: Journal._requeued,
    Recounted: Journal._recounted,
    Completed: Journal._completed,
    Failed: Journal._failed,
    Cancelled: Journal._cancelled,
    Enrolled: Journal._enrolled,
    Dismissed: Journal._dismissed,
    Closed: Journal._closed,
    AssignmentsSettled: Journal._settled,
    WorkersMissed: Journal._missed,
    Pruned: Journal._pruned,
}
