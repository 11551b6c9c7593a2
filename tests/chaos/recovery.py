"""How long it took to go on after a fault, from the starts of tasks.

A figure is told twice where other faults may get in the way: "alone" counts only the faults
beside which nothing else kept the orchestrator, or the clients, from working.
"""

from __future__ import annotations

import bisect
import re
import statistics
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.chaos.diary import read
from tests.chaos.evidence import Evidence, Happening

#: After a fault ended it may be felt for so long: a connection that was cut is made again.
SETTLES_S: Final = 3.0
MOVE_SETTLES_S: Final = 8.0
#: A worker that is not back after this long counts as if it had taken so long.
GIVEN_UP_S: Final = 60.0
#: Faults of one process or machine, told by the word before them.
_OF_ORCHESTRATOR: Final = (
    "kill broker",
    "kill orchestrator",
    "pause broker",
    "one way",
    "new address",
    "full disk",
)
_OF_MACHINES: Final = ("partition", "link down")


def figures(
    evidence: Evidence, happened: list[Happening], log: Path, broker_log: Path
) -> dict[str, object]:
    """Return the figures, by name; `log`: the diaries' folder."""
    workers = len({name for name, _ in _started(log) if name.startswith("worker")})
    central = (0, workers + 1, workers + 2)  # the orchestrator's machine and the clients'

    def is_central(fault: Happening) -> bool:
        if fault.kind.startswith(_OF_MACHINES):
            return fault.pids[0] in central
        return fault.kind.startswith(_OF_ORCHESTRATOR)

    def alone(rows: list[tuple[Happening, float]], faults: list[Happening]) -> list[float]:
        return [took for fault, took in rows if not _beside(fault, took, faults)]

    rerun = reruns(evidence, happened)
    back = first_handouts(evidence, happened, brokers_up(broker_log))
    taken_up = first_new_tasks(evidence, happened)
    pids = [pid for name, pid in _started(log) if name.startswith("worker")]
    ends = {row["pid"]: row["at"] for row in read(log / "events.jsonl") if row["e"] == "ended"}
    moved = workers_back(evidence, happened, pids, ends)
    central_faults = [fault for fault in happened if is_central(fault)]
    cuts = [f for f in happened if is_central(f) or f.kind.startswith((*_OF_MACHINES, "pause"))]
    return {
        "dead_worker_to_rerun_alone_s": spread(alone(rerun, central_faults)),
        "dead_worker_to_rerun_all_s": spread([took for _, took in rerun]),
        "orchestrator_kill_to_handout_alone_s": spread(alone(back, central_faults)),
        "orchestrator_kill_to_handout_all_s": spread([took for _, took in back]),
        "orchestrator_kill_to_new_task_alone_s": spread(alone(taken_up, central_faults)),
        "orchestrator_kill_to_new_task_all_s": spread([took for _, took in taken_up]),
        "new_address_to_workers_back_alone_s": spread(alone(moved, cuts)),
        "new_address_to_workers_back_all_s": spread([took for _, took in moved]),
    }


def reruns(evidence: Evidence, happened: list[Happening]) -> list[tuple[Happening, float]]:
    """Return seconds from a worker's death to the next start of each task that it ran then."""
    deaths = {e.pids[0]: e for e in happened if e.kind.startswith("kill worker")}
    found = []
    for task_id, starts in evidence.starts.items():
        for at, pid in starts:
            died = deaths.get(pid)
            if died is None or (pid, task_id) in evidence.ends or at > died.at:
                continue
            again = [when for when, other in starts if other != pid and when > died.at]
            if again:
                found.append((died, min(again) - died.at))
    return found


def brokers_up(log: Path) -> list[tuple[float, int]]:
    """Return when each broker was up (monotonic seconds), and its epoch, from its own log."""
    if not log.exists():
        return []
    shift_s = time.time() - time.monotonic()
    # A full disk may have swallowed the end of the line before, and its own beginning is within.
    found = re.findall(
        r"(\d{4}-\S+Z|\d{4}-\S+[+]00:00) INFO \S+ broker\.up .*epoch=(\d+)",
        log.read_text("utf-8", "replace"),
    )
    return [(datetime.fromisoformat(at).timestamp() - shift_s, int(epoch)) for at, epoch in found]


def first_handouts(
    evidence: Evidence, happened: list[Happening], ups: list[tuple[float, int]]
) -> list[tuple[Happening, float]]:
    """Return seconds from each kill of a broker to the start of what a later one handed out.

    That is to mesh workers: polling ones do not know whose it is. They go on with what they had
    from the one that was killed, which does not count.
    """
    found = []
    for kill in happened:
        if kill.kind.startswith(("kill broker", "kill orchestrator")):
            at_kill = bisect.bisect(evidence.handed, (kill.at, 0))
            known = [(at, epoch) for at, epoch in ups if at <= kill.at] + evidence.handed[:at_kill]
            killed = max((epoch for _, epoch in known), default=0)  # the log may lack a line
            after = evidence.handed[at_kill:]
            first = next((at for at, epoch in after if epoch > killed), None)
            if first is not None:
                found.append((kill, first - kill.at))
    return found


def first_new_tasks(evidence: Evidence, happened: list[Happening]) -> list[tuple[Happening, float]]:
    """Return seconds from each kill of a broker to the first start of a task accepted after."""
    firsts = sorted(
        (starts[0][0], evidence.acked[task_id][1])
        for task_id, starts in evidence.starts.items()
        if task_id in evidence.acked
    )
    begun = [start for start, _ in firsts]
    found = []
    for kill in happened:
        if kill.kind.startswith(("kill broker", "kill orchestrator")):
            after = bisect.bisect(begun, kill.at)
            first = next((s for s, acked in firsts[after:] if acked > kill.at), None)
            if first is not None:
                found.append((kill, first - kill.at))
    return found


def workers_back(
    evidence: Evidence, happened: list[Happening], pids: Iterable[int], ends: dict[int, float]
) -> list[tuple[Happening, float]]:
    """Return, for each move, when the last mesh worker that lived on had a new task."""
    dead = {pid: e.at for e in happened for pid in e.pids if e.kind.startswith("kill worker")}
    dead = ends | dead | {e.pids[0]: e.at for e in happened if e.kind == "restart worker"}
    begun: dict[int, list[tuple[float, float]]] = {pid: [] for pid in pids}
    for task_id, starts in evidence.starts.items():
        for at, pid in starts:
            if pid in begun and task_id in evidence.acked:
                begun[pid].append((at, evidence.acked[task_id][1]))
    over = max((acked for _, acked in evidence.acked.values()), default=0.0)  # no new tasks since
    found = []
    for move in (e for e in happened if e.kind == "new address"):
        took = []
        for pid, rows in begun.items():
            after = [at for at, acked in rows if acked > move.at]
            until = min(dead.get(pid, over), over)
            if any(at < move.at for at, _ in rows) and until > move.at:
                if after:
                    took.append(min(after) - move.at)
                elif until >= move.at + GIVEN_UP_S:
                    took.append(GIVEN_UP_S)
        if took:
            found.append((move, max(took)))
    return found


def spread(seconds: list[float]) -> str:
    """Return count, p50, p95, p99 and the largest."""
    if not seconds:
        return "none"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else []
    p50, p95, p99 = (cuts[49], cuts[94], cuts[98]) if cuts else (seconds[0],) * 3
    return f"n {len(seconds)}, p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f}, max {max(seconds):.2f}"


def _beside(fault: Happening, took_s: float, others: list[Happening]) -> bool:
    """Tell whether another fault was felt between this one and the end of it."""

    def is_felt(other: Happening) -> bool:
        settles_s = MOVE_SETTLES_S if other.kind == "new address" else SETTLES_S
        is_before = other.at < fault.at + took_s
        return is_before and other.at + other.lasts_s + settles_s > fault.at

    return any(other is not fault and is_felt(other) for other in others)


def _started(log: Path) -> list[tuple[str, int]]:
    rows = read(log / "events.jsonl")
    return [(row["name"], row["pid"]) for row in rows if row["e"] == "started"]
