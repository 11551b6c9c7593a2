"""A new journal out of what was saved of a damaged one.

Whatever is known to have existed has a place in it: a task whose data cannot be read is
recorded as failed, with the reason; one whose result cannot be read likewise.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from d8mesh.core.broker.outcomes import failure_payload
from d8mesh.core.protocol.messages import CANCELLED_STATE, FAILED_STATE
from d8mesh.core.protocol.task import Spec
from d8mesh.edge.sqlite.recovery.opening import (
    NO_FIT,
    drop_data,
    drop_reasons,
    lacks_result,
    opens_any,
    payloads_in,
)
from d8mesh.edge.sqlite.recovery.salvage import Saved
from d8mesh.edge.sqlite.schema import (
    COUNTER_BITS,
    SCHEMA,
    SCHEMA_VERSION,
    SEAL_NAME,
    WAITED,
    Value,
    covering,
    fetch,
)
from d8mesh.edge.sqlite.seal import (
    NO_SEAL,
    RESULT_COLUMN,
    SEALED_BYTES,
    Plain,
    Seal,
    is_sealed,
    plain_bytes,
)
from d8mesh.edge.sqlite.sealing import check_of, is_key_of
from d8mesh.edge.sqlite.texts import is_reference
from d8mesh.errors import JournalKeyError
from d8mesh.private import make_file

DATA_LOST: Final = "the task's data could not be read from the damaged journal"
RESULT_LOST: Final = "the task was finished, but its result could not be read from the journal"
REASON_LOST: Final = "the task had failed; the reason could not be read from the damaged journal"
CODE: Final = "journal.broken"
#: Tasks of one batch made for ids of which nothing else is known.
MADE_BATCH: Final = 10_000
#: Sessions or workers that may be unknown beyond the last known one; more is nonsense.
MAX_UNKNOWN: Final = 4096
_COUNTER_MASK: Final = (1 << COUNTER_BITS) - 1
_UNKNOWN: Final = msgspec.msgpack.encode(Spec("unknown", 5, 1))
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Losses:
    """What could not be kept, as row ids until their names are known."""

    data: list[int] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    reasons: list[int] = field(default_factory=list)
    renamed_sessions: list[str] = field(default_factory=list)
    contradictory: Counter[str] = field(default_factory=Counter)
    has_new_identity: bool = False


class Builder:
    """The new file, which must not exist, while it is made; `close` leaves it without a log.

    Args:
        key: returns the key that opens the payloads, when there are encrypted ones.
    """

    def __init__(self, path: Path, key: Callable[[], bytes]) -> None:
        self._key = key
        self._seal: Plain = NO_SEAL
        #: payloads that look as if they were encrypted, and others
        self._sealed_seen = self._plain_seen = 0
        self.losses = Losses()
        self._at = time.time()
        make_file(path)
        self.db = apsw.Connection(str(path))
        # A file that is not finished is thrown away: nothing needs to be safe yet.
        self.db.execute("PRAGMA journal_mode = OFF").fetchall()
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute(SCHEMA)
        self.db.execute("DELETE FROM totals")
        self.db.execute("CREATE TEMP TABLE lost(row INTEGER PRIMARY KEY)")
        self.db.execute("CREATE TEMP TABLE hints(row INTEGER PRIMARY KEY)")
        self.db.execute("CREATE TEMP TABLE bad(row INTEGER PRIMARY KEY, state INTEGER)")
        self.db.execute("BEGIN")

    def take(self, saved: Saved) -> None:
        """Put a row where it belongs; the first of several that claim one place stays."""
        match saved.table:
            case "batches":
                self._batch(saved)
            case "outcomes":
                self._outcome(saved)
            case "handouts":
                self._assignment(saved)
            case "keys":
                self._insert("keys", saved.values)
                self._hint(_number(saved.values[2]), min(_number(saved.values[3]), MADE_BATCH))
            case "failures":
                self._insert("failures", saved.values)
                self._hint(_number(saved.values[0]), 1)
            case "session names":
                self._insert("sessions", saved.values[::-1])
            case "worker names":
                self._insert("workers", [*saved.values[::-1], 0, 0, "", None])
            case "workers":
                self.db.execute("INSERT OR REPLACE INTO workers VALUES (?,?,?,?,?,?)", saved.values)
            case "batch starts":
                self._hint(_number(saved.values[0]), 1)
            case "bad outcomes":
                self._insert("bad", saved.values[::-1])
            case table:
                self._insert(table, saved.values)

    def _insert(self, table: str, values: list[Value]) -> None:
        marks = ",".join("?" * len(values))
        self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)

    def _hint(self, row: int, count: int) -> None:
        for each in range(row, row + count):
            self._insert("hints", [each])

    def _batch(self, saved: Saved) -> None:
        """Keep a batch; of tasks whose data is cut off, only that they were."""
        values = saved.values
        first, count, blob = _number(values[1]), _number(values[2]), values[8]
        try:
            msgspec.msgpack.decode(values[3] or b"", type=Spec)  # type: ignore[arg-type]
        except (msgspec.MsgspecError, TypeError):
            count = 0
        if not 0 < count <= _COUNTER_MASK:
            self._contradicts("batches")
            self._hint(first, 1)
            return
        payloads = self._found(blob)
        # What is erased keeps its length, and tells not whether that was encrypted.
        sizes = (
            sum(map(len, payloads)),
            sum(max(0, len(each) - SEALED_BYTES) for each in payloads),
        )
        is_whole = not saved.missing_bytes and len(payloads) == count and values[6] in sizes
        if not is_whole and not saved.missing_bytes:
            payloads = []  # its own counts deny them
        kept = payloads[:count]
        for row in range(first + len(kept), first + count):
            self._insert("lost", [row])
        kept += [b""] * (count - len(kept))
        size = values[6] if is_whole else sum(map(plain_bytes, kept))
        self._insert("batches", [*values[:6], size, values[7], _encode(kept)])

    def _outcome(self, saved: Saved) -> None:
        values = saved.values
        count, payloads = _number(values[1]), self._found(values[6])
        if not saved.missing_bytes and len(payloads) != count:
            payloads = []
        kept = payloads[:count]
        if kept:
            self._insert("outcomes", [values[0], len(kept), *values[2:6], _encode(kept)])
        for row in range(_number(values[0]) + len(kept), _number(values[0]) + min(count, 100_000)):
            self.db.execute("INSERT OR REPLACE INTO bad VALUES (?, ?)", (row, values[2]))
        self._hint(_number(values[0]), min(count, MADE_BATCH))

    def _found(self, blob: Value) -> list[bytes]:
        """Return the payloads of a column as far as they are there."""
        found = payloads_in(blob)
        sealed = sum(map(is_sealed, found))
        self._sealed_seen += sealed
        self._plain_seen += (
            sum(1 for each in found if any(each) and not is_reference(each)) - sealed
        )
        return found

    def _assignment(self, saved: Saved) -> None:
        if saved.missing_bytes or _attempts(saved.values[3]) is None:
            self._contradicts("handouts")
            return
        self._insert("handouts", saved.values)
        for row in _attempts(saved.values[3]) or {}:
            self._hint(row, 1)

    def _contradicts(self, table: str, count: int = 1) -> None:
        self.losses.contradictory[table] += count

    # -------------------------------------------------------------------- at the end

    def finish(self, *, are_batches_whole: bool, are_sessions_whole: bool) -> None:
        """Make it a journal that can be started from: nothing in it contradicts the rest."""
        self._meta()
        self._disentangle("batches")
        self._disentangle("outcomes")
        self._drop_pruned()
        if not are_batches_whole:
            self._make_batches()
        self._fit_outcomes()
        for row in drop_data(self.db, self._seal):
            self._insert("lost", [row])
        self._fit_results()
        self._name_sessions(are_whole=are_sessions_whole)
        self._fit_workers()
        self._end_lost()
        self._fit_rest()

    def record_lost(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Record (first, count) that are proven to have existed as failed: their data is gone."""
        for first, count in ranges:
            self._hint(first, count)
        self._make_batches()
        self._end_lost()

    def close(self) -> None:
        """Let the file go."""
        with contextlib.suppress(apsw.Error):
            self.db.execute("ROLLBACK")
        self.db.close()

    def _meta(self) -> None:
        fresh: dict[str, Value] = {
            "epoch": int(self._at),  # above any epoch that was: starts are counted from 1
            "secret": secrets.token_bytes(32),
            "broker_id": "orch-" + secrets.token_hex(5),
            "created_at": self._at,
        }
        # Not worth a look whether it is sound: without it each worker has a whole lease again.
        self.db.execute("DELETE FROM meta WHERE name = ?", (WAITED,))
        had = dict(fetch(self.db, "SELECT name, value FROM meta"))
        secret, epoch = had.get("secret"), had.get("epoch")
        if not isinstance(secret, bytes) or len(secret) != 32 or not had.get("broker_id"):
            self.losses.has_new_identity = True
            had.pop("secret", None)
            had.pop("broker_id", None)
        if not isinstance(epoch, int) or epoch < 0:
            had.pop("epoch", None)
        if SEAL_NAME in had or self._sealed_seen > self._plain_seen:
            self._seal = Seal(self._key())
            if not is_key_of(self._seal, had.get(SEAL_NAME)):
                if not opens_any(self.db, self._seal):
                    raise JournalKeyError(NO_FIT)
                had[SEAL_NAME] = check_of(self._seal)
        for name, value in {**fresh, **had, "schema": SCHEMA_VERSION}.items():
            self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _ranges(self, table: str) -> list[tuple[int, int]]:
        return fetch(self.db, f"SELECT first, count FROM {table} ORDER BY first")

    def _disentangle(self, table: str) -> None:
        """Drop what reaches into the one before, or over the end of its session."""
        end = -1
        for first, count in self._ranges(table):
            if first < end or (first & _COUNTER_MASK) + count > _COUNTER_MASK:
                self.db.execute(f"DELETE FROM {table} WHERE first = ?", (first,))
                self._contradicts(table)
                continue
            end = first + count

    def _drop_pruned(self) -> None:
        """What was pruned may still lie on pages that were not used again."""
        for table in ("batches", "outcomes"):
            self.db.execute(f"DELETE FROM {table} WHERE {_within('pruned', f'{table}.first')}")

    def _make_batches(self) -> None:
        """Make batches for the tasks hinted at that no batch has, and note them as lost."""
        start = end = -1
        missing: list[tuple[int, int]] = []
        for (row,) in fetch(self.db, "SELECT row FROM hints ORDER BY row"):
            if covering(self.db, "batches", row) or covering(self.db, "pruned", row):
                continue
            if row != end or row - start >= MADE_BATCH:
                missing.append((start, end))
                start = row
            end = row + 1
        for first, stop in [*missing, (start, end)]:
            if stop > first:
                what = (_UNKNOWN, "unknown", self._at, 0, 0, _encode([b""] * (stop - first)))
                self._insert("batches", [None, first, stop - first, *what])
                for row in range(first, stop):
                    self._insert("lost", [row])

    def _fit_outcomes(self) -> None:
        """Drop outcomes that belong to no batch or reach over its end."""
        is_within = _within("batches", "outcomes.first", " + outcomes.count - 1")
        self.db.execute(f"DELETE FROM outcomes WHERE NOT {is_within}")
        self._contradicts("outcomes", self.db.changes())

    def _fit_results(self) -> None:
        """Have no outcome with a result, or a text it refers to, that is lost or does not open."""
        for first, count, state, n, worker, at, blob in fetch(self.db, "SELECT * FROM outcomes"):
            results = payloads_in(blob)
            is_lost = [
                lacks_result(self.db, self._seal, row, each)
                for row, each in enumerate(results, first)
            ]
            if not any(is_lost):
                continue
            self.db.execute("DELETE FROM outcomes WHERE first = ?", (first,))
            for row, result in zip(range(first, first + count), results, strict=True):
                if is_lost[row - first]:
                    self.db.execute("INSERT OR REPLACE INTO bad VALUES (?, ?)", (row, state))
                else:
                    self._insert("outcomes", [row, 1, state, n, worker, at, _encode([result])])

    def _name_sessions(self, *, are_whole: bool) -> None:
        """Give the sessions whose names are lost new ones: their tasks go on under these."""
        known = {sid for (sid,) in fetch(self.db, "SELECT sid FROM sessions")}
        used = {
            first >> COUNTER_BITS
            for table in ("batches", "pruned")
            for first, _ in self._ranges(table)
        }
        top = max(known, default=0)
        limit = top if are_whole else top + MAX_UNKNOWN
        for sid in used - known:
            if sid > limit or sid < 1:
                reach = (sid << COUNTER_BITS, (sid + 1 << COUNTER_BITS) - 1)
                for table in ("batches", "outcomes", "pruned"):
                    self.db.execute(f"DELETE FROM {table} WHERE first BETWEEN ? AND ?", reach)
                self._contradicts("sessions")
        highest = max([top, *(sid for sid in used if sid <= limit)], default=0)
        for sid in range(1, highest + 1):  # their numbers are dense: the next is the count + 1
            if sid not in known:
                name = "".join(secrets.choice(_DIGITS) for _ in range(16))
                self.db.execute("INSERT INTO sessions VALUES (?, ?)", (sid, name))
                if sid in used:
                    self.losses.renamed_sessions.append(name)

    def _fit_workers(self) -> None:
        known = {row[0] for row in fetch(self.db, "SELECT worker FROM workers")}
        for worker in range(1, max(known, default=0) + 1):
            if worker not in known:
                name = f"lost-{worker}-{secrets.token_hex(3)}"
                self.db.execute("INSERT INTO workers(worker, name) VALUES (?, ?)", (worker, name))
        for table in ("outcomes", "failures"):
            self.db.execute(
                f"UPDATE {table} SET worker = NULL WHERE worker NOT IN (SELECT worker FROM workers)"
            )

    def _end_lost(self) -> None:
        """Record an outcome for every task that must have one or cannot run."""
        bad = dict(fetch(self.db, "SELECT row, state FROM bad"))
        batches = fetch(self.db, "SELECT first, count, is_done FROM batches ORDER BY first")
        for first, count, is_done in batches:
            open_rows = list(self._open(first, count))
            ends: dict[str, list[int]] = {}
            within = "SELECT row FROM lost WHERE row >= ? AND row < ?"
            lost = {row for (row,) in fetch(self.db, within, (first, first + count))}
            for row in open_rows:
                if row in bad or is_done:
                    state = bad.get(row, FAILED_STATE)
                    why = REASON_LOST if row in bad and state == FAILED_STATE else RESULT_LOST
                    why = "cancelled" if state == CANCELLED_STATE else why
                    ends.setdefault(why, []).append(row)
                elif row in lost:
                    ends.setdefault(DATA_LOST, []).append(row)
            for why, rows in ends.items():
                self._end(rows, why)
            is_over = len(open_rows) == sum(map(len, ends.values()))
            if is_over != bool(is_done):
                self.db.execute("UPDATE batches SET is_done = ? WHERE first = ?", (is_over, first))

    def _open(self, first: int, count: int) -> Iterator[int]:
        """Yield the rows of a batch that have no outcome."""
        row = first
        for start, many in fetch(
            self.db,
            "SELECT first, count FROM outcomes WHERE first >= ? AND first < ? ORDER BY first",
            (first, first + count),
        ):
            yield from range(row, start)
            row = start + many
        yield from range(row, first + count)

    def _end(self, rows: list[int], why: str) -> None:
        is_cancelled = why == "cancelled"
        state = CANCELLED_STATE if is_cancelled else FAILED_STATE
        result = failure_payload(why, "task.cancelled" if is_cancelled else CODE)
        lists = {DATA_LOST: self.losses.data, RESULT_LOST: self.losses.results}
        for row in rows:
            payload = _encode([self._seal.close(RESULT_COLUMN, row, result)])
            self._insert("outcomes", [row, 1, state, 1, None, self._at, payload])
            if not is_cancelled:
                told = self._seal.close_text(row, why)
                self._insert("failures", [row, 1, None, self._at, 1, 0, told, 0, 0.0, None])
                lists.get(why, self.losses.reasons).append(row)

    def _fit_rest(self) -> None:
        """Drop what speaks of tasks that are not there, or that are finished."""
        for table, row in (("failures", "row"), ("keys", "first")):
            self.db.execute(f"DELETE FROM {table} WHERE NOT {_within('batches', f'{table}.{row}')}")
        drop_reasons(self.db, self._seal)
        workers = {row[0] for row in fetch(self.db, "SELECT worker FROM workers")}
        for number, worker, blob in fetch(self.db, "SELECT number, worker, tasks FROM handouts"):
            attempts = _attempts(blob) or {}
            still = {
                row: n
                for row, n in attempts.items()
                if covering(self.db, "batches", row) and not covering(self.db, "outcomes", row)
            }
            if worker not in workers or not still:
                self.db.execute("DELETE FROM handouts WHERE number = ?", (number,))
            elif len(still) < len(attempts):
                tasks = _encode((list(still), list(still.values())))
                self.db.execute("UPDATE handouts SET tasks = ? WHERE number = ?", (tasks, number))


def _within(table: str, row: str, to_last: str = "") -> str:
    """Return the SQL for: the tasks from `row` on are in a batch, run or tombstone of `table`."""
    return (
        f"EXISTS (SELECT 1 FROM {table} w WHERE w.first = (SELECT max(first) FROM {table}"
        f" WHERE first <= {row}) AND {row}{to_last} < w.first + w.count)"
    )


def _number(value: Value) -> int:
    assert isinstance(value, int)  # the form of the row was looked at
    return value


def _attempts(blob: Any) -> dict[int, int] | None:
    """Return row -> attempt of an assignment, or None if it makes no sense."""
    try:
        rows, ns = msgspec.msgpack.decode(blob or b"", type=tuple[list[int], list[int]])
        return dict(zip(rows, ns, strict=True))
    except (msgspec.MsgspecError, ValueError):
        return None
