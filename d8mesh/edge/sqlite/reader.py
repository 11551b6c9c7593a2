"""Questions to the journal, on a connection that cannot write and may live on any one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import apsw
import msgspec

from d8mesh.core.broker import store
from d8mesh.core.protocol.messages import FINAL_STATES, PRUNED_STATE, UNKNOWN_STATE
from d8mesh.core.protocol.source import source_of
from d8mesh.core.protocol.task import Spec, TaskState, parse_id
from d8mesh.edge.sqlite.files import BUSY_MS
from d8mesh.edge.sqlite.place import broken
from d8mesh.edge.sqlite.schema import COUNTER_BITS, Value, covering, fetch, split_row
from d8mesh.edge.sqlite.seal import DATA_COLUMN, NO_SEAL, RESULT_COLUMN, Plain, SealError
from d8mesh.edge.sqlite.texts import ERASED_ONLY, is_erased, is_reference, text_of
from d8mesh.edge.sqlite.wiper import fold
from d8mesh.errors import JournalError, UnknownTaskError

#: Rows looked at for one page of a filtered listing; a sparse page ends early with a cursor.
SCAN_ROWS: Final = 20_000
#: Bytes of results on one page, if it is not a single one that is larger: a page of large
#: ones ends early with a cursor, so that it fits a frame.
PAGE_BYTES: Final = 8 * 1024 * 1024
#: Stands for a text that was overwritten.
OVERWRITTEN: Final = "erased"
#: Beyond any number of a batch and of a task in it.
_PAST_ALL: Final = 2**62
_STATE_CODES: Final = {state: code for code, state in FINAL_STATES.items()}

_RUN: Final = """
SELECT o.first, o.first + o.count, b.spec, b.at, o.state, o.n, w.name, o.at, o.payloads
FROM outcomes o
JOIN batches b ON b.first = (SELECT max(first) FROM batches WHERE first <= o.first)
LEFT JOIN workers w ON w.worker = o.worker
"""


class _OutcomeRun(NamedTuple):
    """One row of `outcomes` with what its batch and worker say."""

    first: int
    end: int
    spec: Spec
    created_at: float
    state: TaskState
    n: int
    worker: str | None
    at: float
    payloads: list[bytes]


#: A task that a listing comes by: where to go on from, its row, the run that holds its outcome
#: if there is one, and whether it is to be told.
_Seen: TypeAlias = tuple[str, int, _OutcomeRun | None, bool]


class Reader:
    """A read-only connection to a journal, whose payloads `seal` opens.

    Thread: used by one thread at a time.
    """

    def __init__(self, path: Path, seal: Plain = NO_SEAL) -> None:
        self._path, self._seal = path, seal
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._db.set_busy_timeout(BUSY_MS)
        self._db.execute("PRAGMA query_only = ON")
        self._db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        self._names: dict[int, str] = {}

    def ask(self, question: store.Question) -> store.StoreAnswer:
        """Answer a question of the broker's brain.

        Raises:
            JournalError: the file cannot be read.
        """
        try:
            return _ANSWERS[type(question)](self, question)
        except SealError as error:
            raise broken(self._path, f"a payload cannot be decrypted: {error}") from error
        except apsw.Error as error:
            raise JournalError(f"cannot read the journal: {error}") from error

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    # ------------------------------------------------------------------ the questions

    def _payloads(self, question: store.PayloadsOf) -> store.BatchPayloads | None:
        row = self._row(f"{question.session}-{question.first}")
        found = fetch(self._db, "SELECT payloads FROM batches WHERE first = ?", (row,))
        if not found:
            return None
        payloads = enumerate(_payloads(found[0][0]), row)
        return store.BatchPayloads([self._data(each, stored) for each, stored in payloads])

    def _outcomes(self, question: store.OutcomesOf) -> store.FinishedStates:
        states, results = bytearray(), []
        first, end, state, payloads = 0, 0, 0, list[bytes]()
        columns = "first, first + count, state, payloads"
        for task_id in question.ids:
            row = self._row(task_id)
            if not first <= row < end:  # usually the next of the same run
                found = covering(self._db, "outcomes", row, columns)
                if found is None:
                    states.append(PRUNED_STATE if self._pruned(row) else UNKNOWN_STATE)
                    results.append(b"")
                    continue
                first, end, state, payloads = *found[:3], _payloads(found[3])
            states.append(state)
            results.append(self._result(row, payloads[row - first])[0])
        return store.FinishedStates(bytes(states), results)

    def _end(self, question: store.EndOf) -> store.FinishedTask | store.PrunedTask | None:
        row = self._row(question.id)
        found = covering(self._db, "outcomes", row)
        if found is None:
            return self._pruned(row)
        (run,) = self._runs(" WHERE o.first = ?", found)
        return self._told(run, row)

    def _details(self, question: store.DetailsOf) -> store.TaskDetails | store.PrunedTask | None:
        row = self._row(question.id)
        found = covering(self._db, "batches", row, "first, spec, payloads")
        if found is None:
            return self._pruned(row)
        first, spec, payloads = found
        ended = covering(self._db, "outcomes", row, "state")
        state = FINAL_STATES[ended[0]] if ended else None
        told, payload = _spec(spec), self._data(row, _payloads(payloads)[row - first])
        is_gone = bool(told.source) and is_erased(payload)
        return store.TaskDetails(told, b"" if is_gone else payload, self._past(row), state, is_gone)

    def _prunable(self, question: store.PrunableBatches) -> store.OldBatches:
        old = store.OldBatches([])
        excess = question.excess
        for first, count, ended_at in fetch(
            self._db,
            "SELECT first, count, (SELECT max(at) FROM outcomes o WHERE o.first >= b.first"
            " AND o.first < b.first + b.count) FROM batches b WHERE is_done = 1"
            " AND NOT EXISTS (SELECT 1 FROM keys k CROSS JOIN batches o ON o.first > k.first"
            " AND o.first < k.first + k.count WHERE k.first = b.first) ORDER BY seq LIMIT ?",
            (question.limit,),
        ):
            if (ended_at is not None and ended_at < question.before_at) or excess >= count:
                excess -= count
                old.batches.append((*self._split(first), count))
        return old

    def _fold_log(self, question: store.FoldLog) -> None:
        fold(self._db, "PASSIVE")

    # ------------------------------------------------------------------------ listings

    def _page(self, question: store.PageOf) -> store.TaskPage | store.BadCursor:
        is_by_end = question.state is not None and not question.is_newest_first
        start = _cursor(question.cursor, 1 if is_by_end else 2)
        if start is None:
            return store.BadCursor()
        page = store.TaskPage([], {}, None)
        size = 0
        walk = (self._by_end if is_by_end else self._by_batch)(question, start)
        for scanned, (cursor, row, run, is_wanted) in enumerate(walk):
            told = self._told(run, row) if is_wanted and run is not None else None
            size += 0 if told is None else len(told.payload)
            is_full = len(page.ids) == question.limit or scanned >= SCAN_ROWS
            if is_full or (page.ids and size > PAGE_BYTES):
                return store.TaskPage(page.ids, page.finished, cursor)
            if is_wanted:
                task_id = "{}-{}".format(*self._split(row))
                page.ids.append(task_id)
                if told is not None:
                    page.finished[task_id] = told
        return page

    def _by_end(self, question: store.PageOf, start: list[int]) -> Iterator[_Seen]:
        """Yield the tasks that ended so, in the order of their ids.

        Bounded by `first`, which is indexed; the run that `start` lies in starts before it.
        """
        (after,) = start
        assert question.state is not None
        where = " WHERE o.first >= ? AND o.first + o.count > ? AND o.state = ?"
        where += " AND b.type = ?" if question.type else ""
        values: list[Value] = [self._run_before(after), after, _STATE_CODES[question.state]]
        values += [question.type] if question.type else []
        for run in self._runs(where + " ORDER BY o.first", values):
            if not _is_by(question.door, run.spec):
                yield str(run.first), run.first, run, False
                continue
            for row in range(max(run.first, after), run.end):
                yield str(row), row, run, True

    def _by_batch(self, question: store.PageOf, start: list[int]) -> Iterator[_Seen]:
        """Yield tasks in the order of acceptance, or against it, batch by batch."""
        is_back = question.is_newest_first
        start_seq, index = start if question.cursor or not is_back else [_PAST_ALL, _PAST_ALL]
        sql = (
            f"SELECT seq, first, count, spec FROM batches WHERE seq {'<=' if is_back else '>='} ?"
            + (" AND is_done = 0" if question.is_open else "")
            + (" AND type = ?" if question.type else "")
            + f" ORDER BY seq {'DESC' if is_back else ''}"
        )
        values = (start_seq, question.type) if question.type else (start_seq,)
        batches: Iterator[Any] = self._db.execute(sql, values)
        for seq, first, count, spec in batches:
            if question.door and not _is_by(question.door, _spec(spec)):
                yield f"{seq}.{count if is_back else 0}", first, None, False
                continue
            row = first + (count - 1 if is_back else 0)
            if seq == start_seq:
                row = first + (min(count - 1, index) if is_back else index)
            yield from self._in_batch(question, seq, row, (first, first + count))

    def _in_batch(
        self, question: store.PageOf, seq: int, row: int, reach: tuple[int, int]
    ) -> Iterator[_Seen]:
        """Yield the tasks of one batch from `row` on; of a run that nobody wants only one."""
        first, end = reach
        is_back, state = question.is_newest_first, question.state
        step = -1 if is_back else 1
        reach = (first, row) if is_back else (self._run_before(row), end - 1)
        where = f" WHERE o.first BETWEEN ? AND ? ORDER BY o.first {'DESC' if is_back else ''}"
        runs = self._runs(where, reach, is_bare=question.is_open)
        run = next(runs, None)
        while first <= row < end:
            while run is not None and (row < run.first if is_back else row >= run.end):
                run = next(runs, None)
            held = run if run is not None and run.first <= row < run.end else None
            if question.is_open:
                is_wanted = held is None
            else:
                is_wanted = state is None or (held is not None and held.state is state)
            yield f"{seq}.{row - first}", row, held, is_wanted
            if held is not None and not is_wanted:  # over all that ended with it
                row = held.first if is_back else held.end - 1
            elif state is not None and held is None:  # over all that are not finished
                row = first if run is None else run.end
            row += step

    # ------------------------------------------------------------------------ helpers

    def _run_before(self, row: int) -> int:
        """Return the start of the last run that starts at `row` or before; `row` without one."""
        found = fetch(self._db, "SELECT max(first) FROM outcomes WHERE first <= ?", (row,))[0][0]
        return row if found is None else int(found)

    def _runs(
        self, where: str, values: list[Value] | tuple[Value, ...], *, is_bare: bool = False
    ) -> Iterator[_OutcomeRun]:
        """Yield runs one by one: all of a page together may be larger than the memory."""
        sql = (_RUN.replace("o.payloads", "NULL") if is_bare else _RUN) + where
        rows: Iterator[Any] = self._db.execute(sql, values)
        for first, end, spec, created_at, code, n, worker, at, payloads in rows:
            results = [] if is_bare else _payloads(payloads)
            told = (FINAL_STATES[code], n, worker, at, results)
            yield _OutcomeRun(first, end, _spec(spec), created_at, *told)

    def _told(self, run: _OutcomeRun, row: int) -> store.FinishedTask:
        is_completed = run.state is TaskState.COMPLETED
        past = self._past(row) if not is_completed or run.n > 1 else []
        why = past[-1].error if past and not is_completed else None
        task_id = "{}-{}".format(*self._split(row))
        payload, is_gone = self._result(row, run.payloads[row - run.first])
        if why == OVERWRITTEN:  # where the caller may know it, it is kept with the result
            why = _kept_error(payload) or why
        return store.FinishedTask(task_id, *run[2:8], payload, why, past, is_gone)

    def _data(self, row: int, stored: bytes) -> bytes:
        """Return what a task was given; of one that was erased what overwrote it."""
        return stored if is_erased(stored) else self._seal.open(DATA_COLUMN, row, stored)

    def _result(self, row: int, stored: bytes) -> tuple[bytes, bool]:
        """Return a result, and whether what was said was erased of it."""
        is_gone = False
        if is_reference(stored):
            stored, is_gone = text_of(self._db, stored)
        if is_gone and stored == ERASED_ONLY:
            return stored, True
        return self._seal.open(RESULT_COLUMN, row, stored), is_gone

    def _shown(self, row: int, text: str | None) -> str | None:
        """Return a reason or traceback as it is told: one that was overwritten is all blanks."""
        if not text:
            return text
        return self._seal.open_text(row, text) if text.strip() else OVERWRITTEN

    def _past(self, row: int) -> list[store.PastAttempt]:
        found = fetch(
            self._db,
            "SELECT f.n, w.name, f.at, f.is_counted, f.why, f.pause_s, f.traceback FROM failures f"
            " LEFT JOIN workers w ON w.worker = f.worker WHERE f.row = ?"
            " ORDER BY f.rowid DESC LIMIT ?",
            (row, store.MAX_PAST_ATTEMPTS),
        )
        return [
            store.PastAttempt(
                n,
                name,
                at,
                bool(counts),
                self._shown(row, why) or "",
                round(pause_s, 3),
                self._shown(row, traceback),
            )
            for n, name, at, counts, why, pause_s, traceback in reversed(found)
        ]

    def _pruned(self, row: int) -> store.PrunedTask | None:
        found = covering(self._db, "pruned", row, "at")
        return None if found is None else store.PrunedTask(*found)

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


def _spec(blob: bytes) -> Spec:
    return msgspec.msgpack.decode(blob, type=Spec)


def _is_by(door: str, spec: Spec) -> bool:
    return not door or source_of(spec.source).door == door


class _ErrorOfResult(msgspec.Struct, gc=False):
    """What is read of a result."""

    error: str = ""


def _kept_error(payload: bytes) -> str:
    """Return why a task failed, as its result has it; "" if it has nothing."""
    try:
        return msgspec.msgpack.decode(payload, type=_ErrorOfResult).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _cursor(text: str, parts: int) -> list[int] | None:
    """Return the numbers of a cursor; None if it is none of that many."""
    if not text:
        return [0] * parts
    numbers = text.split(".")
    if len(numbers) != parts or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    return [min(int(n[:20]), _PAST_ALL) for n in numbers]


_ANSWERS: Final[dict[type, Callable[..., store.StoreAnswer]]] = {
    store.PayloadsOf: Reader._payloads,
    store.OutcomesOf: Reader._outcomes,
    store.EndOf: Reader._end,
    store.DetailsOf: Reader._details,
    store.PageOf: Reader._page,
    store.PrunableBatches: Reader._prunable,
    store.FoldLog: Reader._fold_log,
}
