"""From the diaries and the journal to the table: what was promised and what was kept."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from d8mesh.core.broker.store import FinishedStates, OutcomesOf, PageOf, TaskPage
from d8mesh.core.protocol.messages import FINAL_STATES, PRUNED_STATE
from d8mesh.edge.sqlite.reader import Reader
from d8mesh.edge.sqlite.schema import fetch
from tests.chaos import recovery
from tests.chaos.backlog import BACKLOG_TYPE
from tests.chaos.diary import digest, fingerprint, read
from tests.chaos.evidence import Evidence, Happening, evidence_of
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.traps import POINTS
from tests.chaos.wishes import Wish

#: Codes of the failures that the load may see: workers that died under a task too often.
DEADLY: Final = ("task.poison", "task.attempts")
#: How many tasks may fail so: some, and this share of all.
MAX_DEADLY: Final = 3
MAX_DEADLY_SHARE: Final = 0.001
#: A worker that dies takes as many tasks with it as it has slots: see `stage`.
LOST_AT_ONCE: Final = 4
PLAIN: Final = Wish()
#: Exit code of a child that was killed, by us or at a named point.
KILLED: Final = -9
#: A broker on a disk that was full just now may end until it has noticed that there is room.
DISK_SETTLES_S: Final = 5.0
#: Ids asked of the journal at once.
ASKED: Final = 1000


def judge(folder: Path, happened: list[Happening], *, is_drained: bool) -> dict[str, object]:
    """Return the table of counts of one run."""
    evidence = evidence_of(folder / "log")
    journal = folder / "orchestrator" / "orchestrator" / "journal.db"
    outcomes = outcomes_in(journal, list(evidence.acked))
    kinds = Counter(happening.kind for happening in happened)
    missing = [task_id for task_id in evidence.acked if task_id not in outcomes]
    unended = open_in(journal)  # acknowledged or not, nothing may lie there for ever
    lost = set(missing) - set(unended)
    promised, queued = backlog_of(folder, journal)
    unseen = evidence.acked.keys() - evidence.told.keys()
    executions = sum(len(starts) for starts in evidence.starts.values())
    wrong = wrong_in(evidence, outcomes, faults=len(happened))
    doubled = doubled_in(evidence, outcomes) + overlaps_in(journal)
    for name, ids in (("lost", lost), ("stuck", unended), ("wrong", wrong)):
        for task_id in list(ids)[:10]:
            print(f"  {name}: {task_id}", file=sys.stderr)
    named = sorted(kind.partition(" at ")[2] for kind in kinds if " at " in kind)
    return {
        "submitted_acked": len(evidence.acked),
        "outcomes": len(outcomes),
        "lost": len(lost) + max(0, promised - queued),
        "dup_results": doubled,
        "wrong": len(wrong),
        "stuck": len(set(unended) | (set() if is_drained else unseen)),
        "backlog_acked": promised,
        "failed_with_reason": sum(state == "failed" for state, _ in outcomes.values()),
        "wishes": wishes_in(evidence, outcomes),
        "through_7001": through_7001(evidence, folder / "log"),
        "executions": executions,
        "extra_executions": executions - len(evidence.starts),
        "refused_submits": dict(evidence.refused.most_common(5)),
        "kills": sum(n for kind, n in kinds.items() if kind.startswith("kill")),
        "named_points_reached": f"{len(named)} of {sum(map(len, POINTS.values()))}",
        "partitions_pauses": sum(n for kind, n in kinds.items() if is_cut(kind)),
        "events": dict(sorted(kinds.items())),
        **recovery.figures(
            evidence, happened, folder / "log", folder / "orchestrator" / "logs" / "broker.log"
        ),
    }


def is_cut(kind: str) -> bool:
    """Tell pauses and partitions of all sorts from the other kinds."""
    return kind.startswith(("pause", "partition", "link", "one"))


def crashes_in(log: Path, happened: list[Happening]) -> list[str]:
    """Return the children of the launcher that ended by themselves, from its own log.

    A broker that ends while the disk is full does what it should.
    """
    if not log.exists():
        return []
    shift_s = time.time() - time.monotonic()
    full = [(f.at, f.at + f.lasts_s + DISK_SETTLES_S) for f in happened if f.kind == "full disk"]
    found = []
    for line in log.read_text("utf-8", "replace").splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if " child.died " not in line or words["code"] == str(KILLED):
            continue
        at = datetime.fromisoformat(line.split()[0]).timestamp() - shift_s
        if not any(begun <= at <= over for begun, over in full):
            found.append(f"{words['child']} (exit code {words['code']}, {line.split()[0]})")
    return found


# ------------------------------------------------------------------------- the journal


def outcomes_in(journal: Path, ids: list[str]) -> dict[str, tuple[str, Any]]:
    """Return id -> (state, result) of what the journal has recorded."""
    found: dict[str, tuple[str, Any]] = {}
    reader = Reader(journal)
    try:
        for start in range(0, len(ids), ASKED):
            some = ids[start : start + ASKED]
            answer = reader.ask(OutcomesOf(some))
            assert isinstance(answer, FinishedStates)
            for task_id, state, payload in zip(some, answer.states, answer.payloads, strict=True):
                if state == PRUNED_STATE:
                    found[task_id] = ("pruned", None)
                elif state in FINAL_STATES:
                    word = FINAL_STATES[state].value
                    found[task_id] = (word, msgspec.msgpack.decode(payload))
    finally:
        reader.close()
    return found


def open_in(journal: Path) -> list[str]:
    """Return every task of the load that the journal holds without an outcome."""
    reader = Reader(journal)
    found: list[str] = []
    cursor = ""
    try:
        while True:
            page = reader.ask(PageOf(ASKED, cursor, TASK_TYPE, is_open=True))
            assert isinstance(page, TaskPage)
            found += page.ids
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
    finally:
        reader.close()
    return found


def backlog_of(folder: Path, journal: Path) -> tuple[int, int]:
    """Return how many tasks of the backlog were acknowledged, and how many are queued still."""
    rows = read(folder / "log" / "backlog.jsonl")
    promised = sum(row["count"] for row in rows if row["e"] == "acked")
    db = apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        sql = "SELECT coalesce(sum(count), 0) FROM batches WHERE type = ? AND is_done = 0"
        return promised, fetch(db, sql, (BACKLOG_TYPE,))[0][0]
    finally:
        db.close()


def overlaps_in(journal: Path) -> int:
    """Return how many recorded outcomes a task has beyond its one."""
    db = apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        end = doubled = 0
        for first, count in db.execute("SELECT first, count FROM outcomes ORDER BY first"):
            doubled += max(0, min(end, first + count) - first)
            end = max(end, first + count)
        return doubled
    finally:
        db.close()


def through_7001(evidence: Evidence, log: Path) -> dict[str, int]:
    """Return what the worker and the client did that get through to the REST port only."""
    rows = [row for row in read(log / "events.jsonl") if row["e"] == "narrow"]
    names = {name for row in rows for name in row["names"]}
    pids = {
        row["pid"]
        for row in read(log / "events.jsonl")
        if row["e"] == "started" and row["name"] in names
    }
    ran = sum(pid in pids for starts in evidence.starts.values() for _, pid in starts)
    acked = {
        task_id
        for name in names
        for row in read(log / f"client-{name}.jsonl")
        if row["e"] == "acked"
        for task_id in row["ids"]
    }
    return {"executions": ran, "acked": len(acked)} if names else {}


# -------------------------------------------------------------------------- judgements


def wrong_in(
    evidence: Evidence, outcomes: dict[str, tuple[str, Any]], *, faults: int = 0
) -> list[str]:
    """Return the tasks whose recorded result is not what they asked for."""
    wrong: list[str] = []
    deadly: list[str] = []
    lost_at_once: list[str] = []
    for task_id, (state, result) in outcomes.items():
        wish = evidence.wishes.get(task_id, PLAIN)
        starts = evidence.starts.get(task_id, ())
        code = result.get("code")
        if any(wish.is_early(at) for at, _ in starts):
            wrong.append(task_id)
        elif state == "completed":
            text, output = evidence.acked[task_id][0], result.get("output") or {}
            if (output.get("text"), output.get("sha")) != (text, digest(text)):
                wrong.append(task_id)
        elif state == "cancelled" and task_id in evidence.unwanted:
            pass
        elif state == "failed" and code == "task.deadline":
            if not wish.is_late(evidence.told_at.get(task_id, math.inf)):
                wrong.append(task_id)
        elif state == "failed" and code in DEADLY and result.get("error"):
            # handlers never fail here: only dying workers excuse it
            is_once = wish.kind == "once" and code == "task.attempts"
            (lost_at_once if is_once else deadly).append(task_id)
        else:
            wrong.append(task_id)
    if len(lost_at_once) > LOST_AT_ONCE * faults:
        wrong += lost_at_once
    if len(deadly) > MAX_DEADLY + MAX_DEADLY_SHARE * len(outcomes):
        wrong += deadly
    wrong += [i for i, told in evidence.told.items() if any(s == "missing" for s, _ in told)]
    wrong += [f"a call failed: {code}" for code in evidence.calls_failed if code not in DEADLY]
    if evidence.calls_failed.total() > MAX_DEADLY:
        wrong.append(f"calls failed: {dict(evidence.calls_failed)}")
    return wrong


def doubled_in(evidence: Evidence, outcomes: dict[str, tuple[str, Any]]) -> int:
    """Return how many tasks had two different outcomes: one told, another told or recorded.

    What was answered to a cancel is told too. A key or a call with two tasks counts as well.
    """
    # one key, two tasks; one call, two tasks
    count = sum(len(ids) > 1 for ids in (*evidence.keys.values(), *evidence.calls.values()))
    for task_id, told in evidence.told.items():
        known = {row for row in told if row[0] != "missing"}
        if task_id in outcomes:
            state, result = outcomes[task_id]
            known.add((state, "" if state == "cancelled" else fingerprint(result)))
        said = evidence.unwanted.get(task_id, set()) - {state for state, _ in known}
        count += len(known) > 1 or bool(said)
    return count


def wishes_in(evidence: Evidence, outcomes: dict[str, tuple[str, Any]]) -> dict[str, int]:
    """Return how many tasks asked for what, and how many of them it changed the end of."""
    counts = Counter(wish.kind for wish in evidence.wishes.values())
    counts["keyed"], counts["replayed"] = len(evidence.keys), len(evidence.replays)
    counts["called"] = len(evidence.calls)
    for state, result in outcomes.values():
        if state == "cancelled":
            counts["cancelled"] += 1
        elif state == "failed":
            counts[str(result.get("code"))] += 1
    return dict(sorted(counts.items()))
