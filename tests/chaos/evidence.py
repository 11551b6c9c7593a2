"""What a run left behind: the faults that happened, and what the diaries say."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.diary import read
from tests.chaos.wishes import Wish


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault that happened: its kind, when (monotonic), and to whom.

    `pids` are process ids; of faults of the network the numbers of machines.
    """

    kind: str
    at: float
    pids: list[int]
    lasts_s: float = 0.0


@dataclass(slots=True)
class Evidence:
    """All that the diaries say."""

    #: id -> (text, when acknowledged)
    acked: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: id -> what it asked for beside being run
    wishes: dict[str, Wish] = field(default_factory=dict)
    #: idempotency key -> the ids that it was acknowledged as
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: a call -> the ids that it ran as; how often calls failed with which code
    calls: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    calls_failed: Counter[str] = field(default_factory=Counter)
    #: id of a replay -> id of the task that it is one of
    replays: dict[str, str] = field(default_factory=dict)
    #: ids that their clients tried to cancel, and what was answered
    unwanted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: id -> what clients were told: (state, fingerprint)
    told: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    #: id -> when a client was first told
    told_at: dict[str, float] = field(default_factory=dict)
    #: id -> (when, process id) of each execution's start
    starts: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    #: (process id, id) -> when its execution ended
    ends: dict[tuple[int, str], float] = field(default_factory=dict)
    #: (when, which start of the broker had handed it out) of each execution in a mesh worker
    handed: list[tuple[float, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def evidence_of(log: Path) -> Evidence:
    """Read all diaries."""
    found = Evidence()
    for path in sorted(log.glob("client-*.jsonl")):
        for row in read(path):
            if row["e"] == "acked":
                _acked(found, row)
            elif row["e"] == "got":
                found.told[row["id"]].add((row["state"], row["sum"]))
                found.told_at.setdefault(row["id"], row["at"])
            elif row["e"] == "cancelling":
                found.unwanted[row["id"]].update()
            elif row["e"] == "said":
                found.unwanted[row["id"]].add(row["state"])
            elif row["e"] == "refused":
                found.refused[row["why"]] += 1
            elif row["e"] == "call_failed":
                found.calls_failed[row["code"]] += 1
    for path in log.glob("runs-*.jsonl"):
        pid = int(path.stem.partition("-")[2])
        for row in read(path):
            _executed(found, row, pid)
    for starts in found.starts.values():
        starts.sort()
    found.handed.sort()
    return found


def _executed(found: Evidence, row: dict[str, Any], pid: int) -> None:
    if row["e"] == "end":
        found.ends[pid, row["id"]] = row["at"]
        return
    found.starts[row["id"]].append((row["at"], pid))
    if row.get("call"):
        found.calls[row["call"]].add(row["id"])
    if row.get("epoch"):
        found.handed.append((row["at"], row["epoch"]))


def _acked(found: Evidence, row: dict[str, Any]) -> None:
    for n, task_id in enumerate(row["ids"]):
        found.acked.setdefault(task_id, (f"{row['base']}-{n}", row["at"]))
        if "wish" in row:
            found.wishes[task_id] = Wish(**row["wish"])
        if "key" in row:
            found.keys[row["key"]].add(task_id)
        if "origin" in row:  # it says what the first one said
            found.acked[task_id] = (found.acked[row["origin"]][0], row["at"])
            found.replays[task_id] = row["origin"]
