"""What a run left behind: the faults that happened, and what the diaries say."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.diary import read


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
    #: id -> what clients were told: (state, fingerprint)
    told: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    #: id -> (when, process id) of each execution's start
    starts: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    #: (process id, id) -> when its execution ended
    ends: dict[tuple[int, str], float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


def evidence_of(log: Path) -> Evidence:
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
