"""From the diaries and the journal to the table: what was promised and what was kept."""

from __future__ import annotations

import bisect
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from d8mesh.edge.journal.reader import Reader
from d8mesh.edge.journal.schema import fetch
from tests.chaos.backlog import BACKLOG_TYPE
from tests.chaos.diary import digest, fingerprint, read
from tests.chaos.handlers import TASK_TYPE

STATES: Final = {1: "completed", 2: "failed", 3: "cancelled"}
#: Ids asked of the journal at once.
ASKED: Final = 1000


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault that happened: its kind, when (monotonic), and to which process ids."""

    kind: str
    at: float
    pids: list[int]


@dataclass(slots=True)
class Evidence:
    """All that the diaries say."""

    #: id -> (text, when acknowledged)
    acked: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: id -> what clients were told: (state, fingerprint)
    told: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    #: id -> (when, process id) of each execution's start
    starts: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    #: (process id, id) -> when its execution ended
    ends: dict[tuple[int, str], float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


def judge(folder: Path, happened: list[Happening], *, is_drained: bool) -> dict[str, object]:
    """Return the table of counts of one run."""
    evidence = gather(folder / "log")
    journal = folder / "orchestrator" / "orchestrator" / "journal.db"
    outcomes = outcomes_in(journal, list(evidence.acked))
    kinds = Counter(happening.kind for happening in happened)
    missing = [task_id for task_id in evidence.acked if task_id not in outcomes]
    unended = open_in(journal)  # acknowledged or not, nothing may lie there for ever
    lost = set(missing) - set(unended)
    promised, queued = backlog_of(folder, journal)
    unseen = evidence.acked.keys() - evidence.told.keys()
    executions = sum(len(starts) for starts in evidence.starts.values())
    wrong = wrong_in(evidence, outcomes)
    doubled = doubled_in(evidence, outcomes) + overlaps_in(journal)
    for name, ids in (("lost", lost), ("stuck", unended), ("wrong", wrong)):
        for task_id in list(ids)[:10]:
            print(f"  {name}: {task_id}", file=sys.stderr)
    rerun = reruns(evidence, happened)
    back = first_handouts(evidence, happened)
    return {
        "submitted_acked": len(evidence.acked),
        "outcomes": len(outcomes),
        "lost": len(lost) + max(0, promised - queued),
        "dup_results": doubled,
        "wrong": len(wrong),
        "stuck": len(set(unended) | (set() if is_drained else unseen)),
        "backlog_acked": promised,
        "failed_with_reason": sum(state == "failed" for state, _ in outcomes.values()),
        "executions": executions,
        "extra_executions": executions - len(evidence.starts),
        "refused_submits": dict(evidence.refused.most_common(5)),
        "kills": sum(n for kind, n in kinds.items() if kind.startswith("kill")),
        "partitions_pauses": sum(n for kind, n in kinds.items() if is_cut(kind)),
        "events": dict(sorted(kinds.items())),
        "dead_worker_to_rerun_s": spread(rerun),
        "orchestrator_kill_to_handout_s": spread(back),
        "new_address_to_workers_back_s": spread(workers_back(evidence, happened)),
    }


def is_cut(kind: str) -> bool:
    """Tell pauses and partitions of all sorts from the other kinds."""
    return kind.startswith(("pause", "partition", "link", "one"))


def gather(log: Path) -> Evidence:
    """Read all diaries."""
    found = Evidence()
    for path in sorted(log.glob("client-*.jsonl")):
        for row in read(path):
            if row["e"] == "acked":
                for n, task_id in enumerate(row["ids"]):
                    found.acked[task_id] = (f"{row['base']}-{n}", row["at"])
            elif row["e"] == "got":
                found.told[row["id"]].add((row["state"], row["sum"]))
            elif row["e"] == "refused":
                found.refused[row["why"]] += 1
    for path in log.glob("runs-*.jsonl"):
        pid = int(path.stem.partition("-")[2])
        for row in read(path):
            if row["e"] == "start":
                found.starts[row["id"]].append((row["at"], pid))
            else:
                found.ends[pid, row["id"]] = row["at"]
    for starts in found.starts.values():
        starts.sort()
    return found


# ------------------------------------------------------------------------- the journal


def outcomes_in(journal: Path, ids: list[str]) -> dict[str, tuple[str, Any]]:
    """Return id -> (state, result) of what the journal has recorded."""
    found: dict[str, tuple[str, Any]] = {}
    reader = Reader(journal)
    try:
        for start in range(0, len(ids), ASKED):
            for row in reader.query("outcomes", (ids[start : start + ASKED],)):
                task_id, state, payload = row
                assert isinstance(payload, bytes)
                word = STATES.get(state, "pruned") if isinstance(state, int) else "?"
                found[str(task_id)] = (word, msgspec.msgpack.decode(payload))
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
            head, *rows = reader.query("list", ("open", TASK_TYPE, ASKED, cursor))
            found += [str(row[0]) for row in rows]
            if head[0] is None:
                break
            cursor = str(head[0])
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


# -------------------------------------------------------------------------- judgements


def wrong_in(evidence: Evidence, outcomes: dict[str, tuple[str, Any]]) -> list[str]:
    """Return the tasks whose recorded result is not what they asked for."""
    wrong = []
    for task_id, (state, result) in outcomes.items():
        text = evidence.acked[task_id][0]
        if state == "completed":
            output = result.get("output") or {}
            if (output.get("text"), output.get("sha")) != (text, digest(text)):
                wrong.append(task_id)
        elif state != "failed" or not result.get("error"):
            wrong.append(task_id)
    wrong += [i for i, told in evidence.told.items() if any(s == "missing" for s, _ in told)]
    return wrong


def doubled_in(evidence: Evidence, outcomes: dict[str, tuple[str, Any]]) -> int:
    """Return how many tasks had two different outcomes: one told, another told or recorded."""
    count = 0
    for task_id, told in evidence.told.items():
        known = {row for row in told if row[0] != "missing"}
        if task_id in outcomes:
            state, result = outcomes[task_id]
            known.add((state, fingerprint(result)))
        count += len(known) > 1
    return count


def reruns(evidence: Evidence, happened: list[Happening]) -> list[float]:
    """Return seconds from a worker's death to the next start of each task that it ran then."""
    deaths = {e.pids[0]: e.at for e in happened if e.kind == "kill worker"}
    found = []
    for task_id, starts in evidence.starts.items():
        for at, pid in starts:
            died = deaths.get(pid)
            if died is None or (pid, task_id) in evidence.ends or at > died:
                continue
            again = [when for when, other in starts if other != pid and when > died]
            if again:
                found.append(min(again) - died)
    return found


def first_handouts(evidence: Evidence, happened: list[Happening]) -> list[float]:
    """Return seconds from each kill of a broker to the first start of a task accepted after."""
    firsts = sorted(
        (starts[0][0], evidence.acked[task_id][1])
        for task_id, starts in evidence.starts.items()
        if task_id in evidence.acked
    )
    begun = [start for start, _ in firsts]
    found = []
    for happening in happened:
        if happening.kind in ("kill broker", "kill orchestrator"):
            after = bisect.bisect(begun, happening.at)
            later = (s for s, acked in firsts[after:] if acked > happening.at)
            first = next(later, None)
            if first is not None:
                found.append(first - happening.at)
    return found


def workers_back(evidence: Evidence, happened: list[Happening]) -> list[float]:
    """Return, for each move, when the last worker process alive throughout had a new task."""
    found = []
    dead = {pid: e.at for e in happened for pid in e.pids if e.kind.endswith("worker")}
    for move in (e for e in happened if e.kind == "new address"):
        first: dict[int, float] = {}
        before: set[int] = set()
        for task_id, starts in evidence.starts.items():
            acked = evidence.acked.get(task_id, ("", 0.0))[1]
            for at, pid in starts:
                if at < move.at:
                    before.add(pid)
                elif acked > move.at:
                    first[pid] = min(first.get(pid, at), at)
        alive = [pid for pid in before if not dead.get(pid, move.at + 60) < move.at + 60]
        found += [max(back)] if (back := [first[p] - move.at for p in alive if p in first]) else []
    return found


def spread(seconds: list[float]) -> str:
    """Return count, p50, p95, p99 and the largest."""
    if not seconds:
        return "none"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else []
    p50, p95, p99 = (cuts[49], cuts[94], cuts[98]) if cuts else (seconds[0],) * 3
    return f"n {len(seconds)}, p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f}, max {max(seconds):.2f}"
