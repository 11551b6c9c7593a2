"""Questions to the journal, on a connection that cannot write and may live on any one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw
import msgspec

from d8mesh.core.protocol.messages import PRUNED_STATE
from d8mesh.core.protocol.task import Spec, parse_id
from d8mesh.edge.sqlite.schema import COUNTER_BITS, Value, fetch, split_row
from d8mesh.errors import InvalidTaskError, JournalError, UnknownTaskError

Rows: TypeAlias = list[tuple[object, ...]]

#: Rows looked at for one page of a filtered listing; a sparse page ends early with a cursor.
SCAN_ROWS: Final = 20_000
#: Bytes of results on one page, if it is not a single one that is larger: a page of large
#: ones ends early with a cursor, so that it fits a frame.
PAGE_BYTES: Final = 8 * 1024 * 1024
#: Failures told of one task.
HISTORY_ROWS: Final = 20

_RUN: Final = """
SELECT o.first, o.count, b.type, b.spec, b.at, o.state, o.n, w.name, o.at, o.payloads
FROM outcomes o
JOIN batches b ON b.first = (SELECT max(first) FROM batches WHERE first <= o.first)
LEFT JOIN workers w ON w.worker = o.worker
"""


@dataclass(frozen=True, slots=True)
class _OutcomeRun:
    """One row of `outcomes` with what its batch and worker say."""

    first: int
    count: int
    type: str
    spec: Spec
    created_at: float
    state: int
    n: int
    worker: str | None
    at: float
    payloads: list[bytes]


class Reader:
    """A read-only connection.

    Thread: used by one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._db.set_busy_timeout(5000)
        self._db.execute("PRAGMA query_only = ON")
        self._db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        self._names: dict[int, str] = {}
        self._questions: dict[str, Callable[..., Rows]] = {
            "payloads": self._payloads,
            "outcomes": self._outcomes,
            "task": self._task,
            "list": self._list,
            "replay": self._replay,
            "full": self._full,
            "prunable": self._prunable,
        }

    def query(self, what: str, args: tuple[object, ...]) -> Rows:
        """Answer one question of the dispatcher.

        Raises:
            JournalError: the file cannot be read.
            InvalidTaskError: a cursor that did not come from here.
        """
        try:
            return self._questions[what](*args)
        except apsw.Error as error:
            raise JournalError(f"cannot read the journal: {error}") from error

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    # ------------------------------------------------------------------ the questions

    def _payloads(self, session: str, first: int) -> Rows:
        """One row with the list of payloads of a batch."""
        row = self._row(f"{session}-{first}")
        found = fetch(self._db, "SELECT payloads FROM batches WHERE first = ?", (row,))
        return [(_payloads(found[0][0]),)] if found else []

    def _outcomes(self, ids: list[str]) -> Rows:
        """(id, state, payload) of those that are finished or pruned."""
        rows: Rows = []
        first, end, state = 0, 0, 0
        payloads: list[bytes] = []
        for task_id in ids:
            row = self._row(task_id)
            if not first <= row < end:  # usually the next of the same run
                found = self._run_at(row, "first, count, state, payloads")
                if found is None:
                    if self._pruned_at(row) is not None:
                        rows.append((task_id, PRUNED_STATE, b""))
                    continue
                first, end, state = found[0], found[0] + found[1], found[2]
                payloads = _payloads(found[3])
            rows.append((task_id, state, payloads[row - first]))
        return rows

    def _task(self, task_id: str) -> Rows:
        """The row that `core.broker.reports.finished` reads, or (pruned at,), or nothing."""
        row = self._row(task_id)
        found = self._run_at(row, "first")
        if found is not None:
            (run,) = self._runs(" WHERE o.first = ?", (found[0],))
            return [self._told(run, row)]
        return self._tombstone(row)

    def _replay(self, task_id: str) -> Rows:
        """(spec, payload, state) of a finished task, or (pruned at,), or nothing."""
        row = self._row(task_id)
        found = self._run_at(row, "state")
        if found is None:
            return self._tombstone(row)
        batch = "SELECT first, spec, payloads FROM batches WHERE first <= ? ORDER BY first DESC"
        first, spec, payloads = fetch(self._db, batch + " LIMIT 1", (row,))[0]
        payload = _payloads(payloads)[row - first]
        return [(msgspec.msgpack.decode(spec, type=Spec), payload, found[0])]

    def _full(self, task_id: str) -> Rows:
        """(data, history) of a task, finished or not; nothing if there is no such task."""
        row = self._row(task_id)
        batch = "SELECT first, count, payloads FROM batches WHERE first <= ? ORDER BY first DESC"
        for first, count, payloads in fetch(self._db, batch + " LIMIT 1", (row,)):
            if row < first + count:
                return [(_payloads(payloads)[row - first], self._history(row))]
        return []

    def _prunable(self, before_at: float, excess: int, limit: int) -> Rows:
        """(session, first, count) of finished batches to forget, the oldest first.

        One that a key names stays as long as another batch of the same submit is there:
        the key goes with it and lives as long as any of its tasks.
        """
        rows: Rows = []
        for first, count, ended_at in fetch(
            self._db,
            "SELECT first, count, (SELECT max(at) FROM outcomes o WHERE o.first >= b.first"
            " AND o.first < b.first + b.count) FROM batches b WHERE is_done = 1"
            " AND NOT EXISTS (SELECT 1 FROM keys k CROSS JOIN batches o ON o.first > k.first"
            " AND o.first < k.first + k.count WHERE k.first = b.first) ORDER BY seq LIMIT ?",
            (limit,),
        ):
            if (ended_at is not None and ended_at < before_at) or excess >= count:
                excess -= count
                rows.append((*self._split(first), count))
        return rows

    def _list(self, state: str, kind: str, limit: int, cursor: str, order: str = "oldest") -> Rows:
        """A first row (next cursor or None,), then rows as of `_task`.

        Unfinished tasks have None for their state; memory knows better how they stand.
        """
        code = _FINAL_CODES.get(state)
        if order == "newest":
            return self._list_newest(code, kind, limit, cursor, is_open_only=state == "open")
        if code is None:
            return self._list_batches(state == "open", kind, limit, cursor)
        after = _cursor(cursor, 1)[0]
        # Bounded by `first`, which is indexed; the run that `after` lies in starts before it.
        where = " WHERE o.first >= ? AND o.first + o.count > ? AND o.state = ?"
        where += " AND b.type = ?" if kind else ""
        values: tuple[Value, ...] = (self._run_before(after), after, code)
        values = (*values, kind) if kind else values
        told: Rows = []
        size = 0
        for run in self._runs(where + " ORDER BY o.first LIMIT ?", (*values, limit + 1)):
            for row in range(max(run.first, after), run.first + run.count):
                size += len(run.payloads[row - run.first])
                if len(told) == limit or (told and size > PAGE_BYTES):
                    return [(str(row),), *told]
                told.append(self._told(run, row))
        return [(None,), *told]

    def _list_batches(self, is_open_only: bool, kind: str, limit: int, cursor: str) -> Rows:
        """Tasks in the order of acceptance, batch by batch."""
        seq, index = _cursor(cursor, 2)
        told: Rows = []
        scanned = size = 0
        sql = (
            "SELECT seq, first, count, type, spec, at FROM batches WHERE seq >= ?"
            + (" AND is_done = 0" if is_open_only else "")
            + (" AND type = ?" if kind else "")
            + " ORDER BY seq LIMIT ?"
        )
        while True:
            values = (seq, kind, limit + 1) if kind else (seq, limit + 1)
            batches = fetch(self._db, sql, values)
            for batch_seq, first, count, batch_type, blob, at in batches:
                row = first + (index if batch_seq == seq else 0)
                spec = msgspec.msgpack.decode(blob, type=Spec)
                runs = self._finished_in(row, first + count, is_open_only)
                run = next(runs, None)
                while row < first + count:
                    while run is not None and row >= run.first + run.count:
                        run = next(runs, None)
                    is_finished = run is not None and row >= run.first
                    if run is not None and is_finished and not is_open_only:
                        size += len(run.payloads[row - run.first])
                    is_full = len(told) == limit or scanned >= SCAN_ROWS
                    if is_full or (told and size > PAGE_BYTES):
                        return [(f"{batch_seq}.{row - first}",), *told]
                    scanned += 1
                    if run is None or not is_finished:
                        session, n = self._split(row)
                        head = (f"{session}-{n}", batch_type, spec.priority, at)
                        told.append((*head, None, 0, None, None, None, None, spec.replay_of, []))
                    elif not is_open_only:
                        told.append(self._told(run, row))
                    else:  # over all that ended with it
                        row = run.first + run.count - 1
                    row += 1
            if len(batches) <= limit:
                return [(None,), *told]
            # Finished batches may not be marked so yet: those fetched need not fill a page.
            seq, index = batches[-1][0] + 1, 0

    def _list_newest(
        self, code: int | None, kind: str, limit: int, cursor: str, *, is_open_only: bool
    ) -> Rows:
        """Tasks against the order of acceptance; `code`: those that ended so only."""
        seq, index = _cursor(cursor, 2) if cursor else (2**62, 2**62)
        told: Rows = []
        scanned = size = 0
        sql = (
            "SELECT seq, first, count, type, spec, at FROM batches WHERE seq <= ?"
            + (" AND is_done = 0" if is_open_only else "")
            + (" AND type = ?" if kind else "")
            + " ORDER BY seq DESC"
        )
        for batch_seq, first, count, batch_type, blob, at in self._db.execute(
            sql, (seq, kind) if kind else (seq,)
        ):
            scanned += 1
            row = first + min(count - 1, index if batch_seq == seq else count - 1)
            spec = msgspec.msgpack.decode(blob, type=Spec)
            runs = self._finished_back(first, row, is_bare=is_open_only)
            run = next(runs, None)
            while row >= first:
                while run is not None and row < run.first:
                    run = next(runs, None)
                is_finished = run is not None and row < run.first + run.count
                wanted = code is None or (run is not None and is_finished and run.state == code)
                if run is not None and is_finished and not is_open_only and wanted:
                    size += len(run.payloads[row - run.first])
                is_full = len(told) == limit or scanned >= SCAN_ROWS
                if is_full or (told and size > PAGE_BYTES):
                    return [(f"{batch_seq}.{row - first}",), *told]
                scanned += 1
                if run is not None and is_finished:
                    if is_open_only or not wanted:
                        row = max(first, run.first)  # over all that ended with it
                    else:
                        told.append(self._told(run, row))
                elif wanted:
                    session, n = self._split(row)
                    head = (f"{session}-{n}", batch_type, spec.priority, at)
                    told.append((*head, None, 0, None, None, None, None, spec.replay_of, []))
                elif run is None:
                    break  # the rest of this batch is not finished
                else:
                    row = run.first + run.count
                row -= 1
        return [(None,), *told]

    def _finished_back(self, first: int, last: int, *, is_bare: bool) -> Iterator[_OutcomeRun]:
        """Yield the runs that hold rows from `first` to `last`, the last first."""
        where = " WHERE o.first >= ? AND o.first <= ? ORDER BY o.first DESC"
        return self._runs(where, (first, last), is_bare=is_bare)

    def _finished_in(self, first: int, end: int, is_bare: bool) -> Iterator[_OutcomeRun]:
        """Yield the runs that hold rows from `first` to `end` - 1, in order.

        Args:
            is_bare: leave the results where they are.
        """
        values = (self._run_before(first), end)
        where = " WHERE o.first >= ? AND o.first < ? ORDER BY o.first"
        return self._runs(where, values, is_bare=is_bare)

    # ------------------------------------------------------------------------ helpers

    def _run_before(self, row: int) -> int:
        """Return the start of the last run that starts at `row` or before; `row` without one."""
        found = fetch(self._db, "SELECT max(first) FROM outcomes WHERE first <= ?", (row,))[0][0]
        return row if found is None else int(found)

    def _run_at(self, row: int, columns: str) -> tuple[Any, ...] | None:
        """Return columns of the run that holds the outcome of `row`, or None."""
        sql = f"SELECT first + count, {columns} FROM outcomes WHERE first <= ?"
        found = fetch(self._db, sql + " ORDER BY first DESC LIMIT 1", (row,))
        return found[0][1:] if found and row < found[0][0] else None

    def _runs(
        self, where: str, values: tuple[Value, ...], *, is_bare: bool = False
    ) -> Iterator[_OutcomeRun]:
        """Yield runs one by one: all of a page together may be larger than the memory."""
        sql = (_RUN.replace("o.payloads", "NULL") if is_bare else _RUN) + where
        rows: Iterator[Any] = self._db.execute(sql, values)
        for first, count, kind, spec, created_at, state, n, worker, at, payloads in rows:
            decoded = msgspec.msgpack.decode(spec, type=Spec)
            results = [] if is_bare else _payloads(payloads)
            yield _OutcomeRun(
                first, count, kind, decoded, created_at, state, n, worker, at, results
            )

    def _told(self, run: _OutcomeRun, row: int) -> tuple[object, ...]:
        session, counter = self._split(row)
        past = self._history(row) if run.state != 1 or run.n > 1 else []
        why = past[-1]["error"] if past and run.state != 1 else None
        head = (f"{session}-{counter}", run.type, run.spec.priority, run.created_at)
        payload = run.payloads[row - run.first]
        tail = (run.worker, run.at, payload, why, run.spec.replay_of, past)
        return (*head, run.state, run.n, *tail)

    def _history(self, row: int) -> list[dict[str, object]]:
        found = fetch(
            self._db,
            "SELECT f.n, w.name, f.at, f.is_counted, f.why, f.pause_s, f.traceback FROM failures f"
            " LEFT JOIN workers w ON w.worker = f.worker WHERE f.row = ?"
            " ORDER BY f.rowid DESC LIMIT ?",
            (row, HISTORY_ROWS),
        )
        return [
            {
                "attempt": n,
                "worker_id": name,
                "at": at,
                "is_counted": bool(counts),
                "error": why,
                "pause_s": round(pause_s, 3),
            }
            | ({} if traceback is None else {"traceback": traceback})
            for n, name, at, counts, why, pause_s, traceback in reversed(found)
        ]

    def _tombstone(self, row: int) -> Rows:
        pruned_at = self._pruned_at(row)
        return [] if pruned_at is None else [(pruned_at,)]

    def _pruned_at(self, row: int) -> float | None:
        found = fetch(
            self._db,
            "SELECT first, count, at FROM pruned WHERE first <= ? ORDER BY first DESC LIMIT 1",
            (row,),
        )
        return found[0][2] if found and row < found[0][0] + found[0][1] else None

    def _row(self, task_id: str) -> int:
        try:
            key = parse_id(task_id)
        except UnknownTaskError:
            return -1
        found = fetch(self._db, "SELECT sid FROM sessions WHERE name = ?", (key.session,))
        return (found[0][0] << COUNTER_BITS) + key.n if found else -1

    def _split(self, row: int) -> tuple[str, int]:
        if row >> COUNTER_BITS not in self._names:
            self._names = dict(fetch(self._db, "SELECT sid, name FROM sessions"))
        return split_row(row, self._names)


def _payloads(blob: bytes) -> list[bytes]:
    return msgspec.msgpack.decode(blob, type=list[bytes])


_FINAL_CODES: Final = {"completed": 1, "failed": 2, "cancelled": 3}


def _cursor(text: str, parts: int) -> list[int]:
    if not text:
        return [0] * parts
    numbers = text.split(".")
    if len(numbers) != parts or not all(n.isascii() and n.isdigit() for n in numbers):
        raise InvalidTaskError(f"cursor: saw {text[:40]!r}, expected a next_cursor of this listing")
    return [min(int(n[:20]), 2**62) for n in numbers]
