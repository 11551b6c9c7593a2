"""The state that a journal holds, read at a start: unfinished tasks only."""

from __future__ import annotations

from typing import Final

import apsw
import msgspec

from d8mesh.core.broker.records import Batch, History, Totals, WorkerRecord
from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol.task import Spec
from d8mesh.edge.sqlite.schema import WAITED, covering, fetch, split_row
from d8mesh.edge.sqlite.seal import DIGEST_COLUMN, NO_SEAL, Plain

#: What damage raises: a file too large to be looked at page by page at a start shows it here.
UNREADABLE: Final = (apsw.Error, KeyError, IndexError, TypeError, ValueError, msgspec.MsgspecError)

#: Of what belongs to an open batch. CROSS JOIN keeps SQLite from walking through all that is
#: finished instead: a start must not take longer the more there is of it.
#: https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join
_WITHIN: Final = "{0} >= b.first AND {0} < b.first + b.count"


def fill(db: apsw.Connection, restored: Restored, seal: Plain = NO_SEAL) -> None:
    """Read all that is unfinished, and the counts, into `restored`."""
    names = dict(fetch(db, "SELECT sid, name FROM sessions"))
    _counts(db, restored, names)
    _keys(db, restored, names, seal)
    _batches(db, restored, names)
    _hands(db, restored, names, seal)


def _counts(db: apsw.Connection, restored: Restored, names: dict[int, str]) -> None:
    row = fetch(db, "SELECT submitted, completed, failed, cancelled, pruned FROM totals")[0]
    submitted, completed, failed, cancelled, pruned = row
    restored.totals = Totals(submitted, completed, failed, cancelled)
    restored.sessions = len(names)
    restored.kept_finished = completed + failed + cancelled - pruned
    for name, done, bad, kind, capabilities in fetch(
        db, "SELECT name, completed, failed, type, capabilities FROM workers"
    ):
        restored.workers[name] = WorkerRecord(done, bad, kind, capabilities)
    for row, due_at in fetch(db, "SELECT row, due_at FROM erasures"):
        session, n = split_row(row, names)
        restored.erasures[f"{session}-{n}"] = due_at
    highest = fetch(db, "SELECT coalesce(max(number), 0) FROM handouts")[0][0]
    restored.next_assignment = 1 + highest


def _keys(db: apsw.Connection, restored: Restored, names: dict[int, str], seal: Plain) -> None:
    for key, digest, first, count in fetch(db, "SELECT key, digest, first, count FROM keys"):
        restored.keys[key] = (
            seal.open(DIGEST_COLUMN, first, digest),
            *split_row(first, names),
            count,
        )


def _batches(db: apsw.Connection, restored: Restored, names: dict[int, str]) -> None:
    start = end = -1
    used = "SELECT first, count FROM batches UNION ALL SELECT first, count FROM pruned ORDER BY 1"
    for first, count in fetch(db, used):
        if first != end:
            _accept(restored, names, start, end)
            start = first
        end = first + count
    _accept(restored, names, start, end)
    finished: dict[int, list[int]] = {}
    for seq, index, run in fetch(
        db,
        "SELECT b.seq, o.first - b.first, o.count FROM batches b CROSS JOIN outcomes o"
        f" ON {_WITHIN.format('o.first')} WHERE b.is_done = 0",
    ):
        finished.setdefault(seq, []).extend(range(index, index + run))
    decode = msgspec.msgpack.Decoder(Spec).decode
    specs: dict[bytes, Spec] = {}
    for seq, first, count, blob, at, size in fetch(
        db, "SELECT seq, first, count, spec, at, bytes FROM batches WHERE is_done = 0 ORDER BY seq"
    ):
        spec = specs.get(blob) or specs.setdefault(blob, decode(blob))
        session, n = split_row(first, names)
        batch = Batch(session, n, count, spec, at, size, 0)
        restored.batches.append((batch, finished.get(seq, [])))


def _accept(restored: Restored, names: dict[int, str], start: int, end: int) -> None:
    if end > start:
        session, n = split_row(start, names)
        restored.accepted.setdefault(session, []).append((n, end - start))


def _hands(db: apsw.Connection, restored: Restored, names: dict[int, str], seal: Plain) -> None:
    """Find who had what and is waited for, and what had gone wrong before."""
    workers = dict(fetch(db, "SELECT worker, name FROM workers"))
    holders: dict[int, tuple[int, int]] = {}
    for worker, tasks in fetch(db, "SELECT worker, tasks FROM handouts ORDER BY number"):
        rows, ns = msgspec.msgpack.decode(tasks)
        holders.update((row, (n, worker)) for row, n in zip(rows, ns, strict=True))
    for row, n, worker, at, is_counted, is_loss, why, returned, pause_s in fetch(
        db,
        "SELECT f.row, f.n, f.worker, f.at, f.is_counted, f.is_loss, f.why, f.returned, f.pause_s"
        f" FROM batches b CROSS JOIN failures f ON {_WITHIN.format('f.row')}"
        " WHERE b.is_done = 0 ORDER BY f.rowid",
    ):
        if covering(db, "outcomes", row) is not None:
            continue
        session, counter = split_row(row, names)
        task_id = f"{session}-{counter}"
        highest, history = restored.troubled.get(task_id, (0, History()))
        name, told = workers.get(worker, ""), seal.open_text(row, why)
        if is_counted:  # as `TaskTable.apply` does with the fact
            history.count(name, n, told, is_loss=bool(is_loss))
        else:
            history.give_back(name, told, returned)
        history.not_before_at, history.pause_s = at + pause_s if pause_s else 0.0, pause_s
        restored.troubled[task_id] = (max(highest, n), history)
        if row in holders and holders[row][0] <= n:
            del holders[row]
    for row, (n, worker) in holders.items():
        session, counter = split_row(row, names)
        restored.in_flight[f"{session}-{counter}"] = (n, workers[worker])
    for (waited,) in fetch(db, "SELECT value FROM meta WHERE name = ?", (WAITED,)):
        restored.waited = msgspec.msgpack.decode(waited, type=dict[str, float])
