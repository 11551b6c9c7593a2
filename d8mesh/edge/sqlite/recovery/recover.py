"""A journal that is refused as broken: a new one beside it, and word of what it lacks.

The damaged file is only read, and moved aside at the end. Between the first and the last
move a note lies in the folder: a start finds it and refuses, the next `recover` goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import apsw

from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol.messages import (
    CANCELLED_STATE,
    COMPLETED_STATE,
    FAILED_STATE,
    FINAL_STATES,
)
from d8mesh.edge.sqlite import restore
from d8mesh.edge.sqlite.files import SIDES, beside, swap, sync
from d8mesh.edge.sqlite.place import Lock, version_of
from d8mesh.edge.sqlite.recovery.rebuild import Builder
from d8mesh.edge.sqlite.recovery.salvage import TABLES, Salvage
from d8mesh.edge.sqlite.schema import COUNTER_BITS, NOTE_SUFFIX, SCHEMA_VERSION, fetch, split_row
from d8mesh.edge.sqlite.seal import seal_of
from d8mesh.edge.sqlite.sealing import OLD_SUFFIX, finish_resealing, key_of, required_key
from d8mesh.errors import JournalError
from d8mesh.private import replace_file

#: Ids named one by one in the report; more are counted.
NAMED_IDS: Final = 10_000


@dataclass(slots=True)
class TableReport:
    """One table: rows kept, rows damaged, and the row ids that could not be read."""

    kept: int
    damaged: int
    #: (first, last) row id
    unreadable: list[tuple[int, int]]


@dataclass(slots=True)
class Recovered:
    """What `recover` did; `outcome` is ``sound``, ``recovered`` or ``missing``."""

    journal: str
    outcome: str
    moved_to: str = ""
    tables: dict[str, TableReport] = field(default_factory=dict)
    queued: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    #: tasks now recorded as failed, each with its reason
    lost_data: list[str] = field(default_factory=list)
    lost_results: list[str] = field(default_factory=list)
    lost_reasons: list[str] = field(default_factory=list)
    lost_count: int = 0
    #: (first, last) ids between which tasks may have been that nothing is known of
    unknown_ids: list[tuple[str, str]] = field(default_factory=list)
    #: accepted tasks that are in none of the lists, None if that cannot be told
    unknown_count: int | None = 0
    #: unfinished tasks that may have finished before, and run again
    may_run_again: int = 0
    renamed_sessions: list[str] = field(default_factory=list)
    has_new_identity: bool = False
    ignored_log_pages: int = 0


def recover(path: Path, say: Callable[[str], None]) -> Recovered:
    """Make a journal that can be read out of one that cannot; a sound one is left alone.

    `say` is told of progress, in words.

    Raises:
        JournalHeldError: an orchestrator uses it.
        JournalBrokenError: it is of a newer version: nothing is wrong with it.
        JournalKeyError: its payloads are encrypted, and the key is missing, or is another one.
        JournalError: the disk is full or does not give the file; nothing was changed.
    """
    note = path.with_name(path.name + NOTE_SUFFIX)
    if not path.exists() and not note.exists() and not beside(path, OLD_SUFFIX).exists():
        return Recovered(str(path), "missing")
    lock = Lock(path.with_name(path.name + ".lock"))
    try:
        finish_resealing(path)
        if note.exists():  # the power went while the files were moved
            moved = _swap(path, note)
            say("an interrupted recovery was completed")
            return _reported(moved)
        say("looking at the file")
        if _read(path) is not None:
            return Recovered(str(path), "sound")
        return _recover(path, note, say)
    except (apsw.Error, OSError) as error:
        raise JournalError(f"cannot recover {path}: {error}. Nothing of it was changed") from error
    finally:
        lock.close()


def _recover(path: Path, note: Path, say: Callable[[str], None]) -> Recovered:
    fresh = path.with_name(path.name + ".new")
    for side in (*SIDES, "-journal"):
        beside(fresh, side).unlink(missing_ok=True)
    salvage, builder = Salvage(path, say), Builder(fresh, lambda: required_key(path))
    try:
        for row in salvage.rows():
            builder.take(row)
        say("putting together what was read")
        report = _finish(path, salvage, builder)
        builder.db.execute("COMMIT")
        builder.db.execute("PRAGMA journal_mode = WAL").fetchall()
    except BaseException:  # also on Ctrl-C: nothing half done may lie there
        builder.close()
        fresh.unlink(missing_ok=True)
        raise
    builder.close()
    say("checking the new journal")
    _validate(fresh, report)
    sync(fresh)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}-broken-{stamp}{path.suffix}")
    report.moved_to = str(aside)
    told = aside.with_suffix(".json")
    replace_file(told, json.dumps(asdict(report), ensure_ascii=False, indent=1).encode())
    part = note.with_name(note.name + ".part")
    replace_file(part, json.dumps({"aside": aside.name}).encode())
    sync(part)
    part.replace(note)
    _swap(path, note)
    return report


def _swap(path: Path, note: Path) -> Path:
    """Move the old files aside and the new one in; can be repeated. Return where they went."""
    aside = path.with_name(json.loads(note.read_text("utf-8"))["aside"])
    fresh = path.with_name(path.name + ".new")
    sync(path.parent)
    if fresh.exists():
        swap(path, fresh, aside)
    note.unlink()
    sync(path.parent)
    return aside


def _reported(aside: Path) -> Recovered:
    told = aside.with_suffix(".json")
    body = json.loads(told.read_text("utf-8"))
    body["tables"] = {name: TableReport(**rows) for name, rows in body["tables"].items()}
    return Recovered(**body)


def _read(path: Path) -> tuple[Restored, dict[int, int]] | None:
    """Return what a start would find, and how many ended how; None if it would not start.

    Looks at every page, and changes nothing.
    """
    restored, counts = Restored(0, b""), dict[int, int]()
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return None
    try:
        db.set_busy_timeout(1000)
        version = version_of(db, path)
        if fetch(db, "PRAGMA integrity_check(1)") != [("ok",)] or not version:
            return None
        if version == SCHEMA_VERSION:  # a start migrates an older one
            restore.fill(db, restored, seal_of(key_of(db, path)))
            counts = dict(fetch(db, "SELECT state, sum(count) FROM outcomes GROUP BY state"))
    except restore.UNREADABLE:
        return None
    finally:
        db.close()
    return restored, counts


def _validate(fresh: Path, report: Recovered) -> None:
    """Read the new file as a start would, and count what is in it."""
    found = _read(fresh)
    if found is None:
        raise JournalError(f"{fresh} was made and is not sound: please report this")
    restored, counts = found
    report.queued = sum(batch.count - len(done) for batch, done in restored.batches)
    for state, count in counts.items():
        setattr(report, FINAL_STATES[state].value, count)
    if not report.tables["outcomes"].damaged and not report.tables["outcomes"].unreadable:
        return
    report.may_run_again = report.queued


def _finish(path: Path, salvage: Salvage, builder: Builder) -> Recovered:
    tables = salvage.tables
    builder.finish(
        are_batches_whole=tables["batches"].is_whole,
        are_sessions_whole=tables["sessions"].is_whole,
    )
    gaps: list[tuple[int, int]] = []
    missing: int | None = 0
    if not tables["batches"].is_whole:
        gaps, missing = _gaps(builder)
        is_exact = missing is not None and tables["pruned"].is_whole
        if is_exact and gaps and missing == sum(count for _, count in gaps):
            builder.record_lost(gaps)  # the counts prove that each of them was a task
            gaps, missing = [], 0
    _set_totals(builder)
    losses = builder.losses
    names = dict(fetch(builder.db, "SELECT sid, name FROM sessions"))

    def named(rows: list[int]) -> list[str]:
        return ["{}-{}".format(*split_row(row, names)) for row in sorted(rows)[:NAMED_IDS]]

    unknown = [(first, first + count - 1) for first, count in gaps]
    report = Recovered(
        str(path),
        "recovered",
        lost_data=named(losses.data),
        lost_results=named(losses.results),
        lost_reasons=named(losses.reasons),
        lost_count=len(losses.data) + len(losses.results) + len(losses.reasons),
        unknown_ids=[(named([low])[0], named([high])[0]) for low, high in unknown],
        unknown_count=missing,
        renamed_sessions=losses.renamed_sessions,
        has_new_identity=losses.has_new_identity,
        ignored_log_pages=salvage.ignored_frames,
    )
    for name in ("meta", "keys", *TABLES):
        state = tables[name]
        kept = fetch(builder.db, f"SELECT count(*) FROM {name}")[0][0]
        damaged = state.unfit + state.cut + state.found.damaged_cells
        damaged += losses.contradictory[name]
        unreadable = [(max(gap.low + 1, 0), gap.high) for gap in state.found.gaps if gap.high >= 0]
        if not state.has_root:
            unreadable = [(0, 2**63 - 1)]
        elif state.found.damaged_pages and not unreadable:
            damaged += len(state.found.damaged_pages)
        report.tables[name] = TableReport(kept, damaged, unreadable)
    return report


def _gaps(builder: Builder) -> tuple[list[tuple[int, int]], int | None]:
    """Return the counters between known ones, and how many accepted tasks are not known."""
    used = "SELECT first, count FROM batches UNION ALL SELECT first, count FROM pruned ORDER BY 1"
    gaps: list[tuple[int, int]] = []
    end = 0
    for first, count in fetch(builder.db, used):
        start = max(end, first >> COUNTER_BITS << COUNTER_BITS)
        if first > start:
            gaps.append((start, first - start))
        end = first + count
    totals = fetch(builder.db, "SELECT submitted, pruned FROM totals")
    known = fetch(builder.db, "SELECT coalesce(sum(count), 0) FROM batches")[0][0]
    return gaps, (max(0, totals[0][0] - totals[0][1] - known) if totals else None)


def _set_totals(builder: Builder) -> None:
    """Have the lifetime counts agree with what is kept: finished - pruned = outcomes."""
    db = builder.db
    had = fetch(db, "SELECT submitted, completed, failed, cancelled, pruned FROM totals")
    gone = fetch(db, "SELECT coalesce(sum(count), 0) FROM pruned")[0][0]
    known = fetch(db, "SELECT coalesce(sum(count), 0) FROM batches")[0][0]
    counts = dict(fetch(db, "SELECT state, sum(count) FROM outcomes GROUP BY state"))
    kept = [counts.get(code, 0) for code in (COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE)]
    submitted, completed, failed, cancelled, pruned = (
        had[0] if had else (0, kept[0] + gone, kept[1], kept[2], gone)
    )
    completed, failed, cancelled = map(max, (completed, failed, cancelled), kept)
    excess = completed + failed + cancelled - pruned - sum(kept)
    if excess < 0:
        completed -= excess
    else:  # what it had counted and is not there any more
        cut = min(excess, completed - kept[0])
        completed -= cut
        failed -= min(excess - cut, failed - kept[1])
    values = (max(submitted, known + pruned), completed, failed, cancelled, pruned)
    db.execute("DELETE FROM totals")
    db.execute("INSERT INTO totals VALUES (1, ?, ?, ?, ?, ?)", values)
