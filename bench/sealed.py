"""What `D8_ENCRYPT=1` costs: a journal and a whole mesh with and without, in turn within one run.

The journal alone takes durable tasks in batches and one by one, from the submission to the recorded
result, on the disk of the temporary folder. Of sealing alone the best of many tries is told: other
work on the machine makes one slower, never faster.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.findings import Findings, ratios, rotated
from bench.plan import Plan
from bench.progress import say
from bench.sides import Kind, compare
from d8mesh.core.protocol.task import Completed, Spec, Submitted
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.seal import DATA_COLUMN, Seal

SESSION: Final = "0123456789abcdef"
#: Bytes of a task's data, and of its result.
PAYLOAD_BYTES: Final = 200
BATCH: Final = 1000
#: Batches and single tasks of a turn of the full run.
BATCHES: Final = 20
SINGLES: Final = 300
#: A round goes from one journal to the other so often; the best turn of each counts.
TURNS: Final = 3
#: Bytes of payloads that are sealed alone -> label.
SIZES: Final = {200: "200 B", 1000: "1 KB", 32_000: "32 KB", 1_000_000: "1 MB"}

SEALED: Final = Kind("D8_ENCRYPT=1", {"D8_ENCRYPT": "1"})
PLAIN: Final = Kind("without")
BATCHED: Final = "The journal alone, batches of 1,000"
SINGLE: Final = "The journal alone, one task at a time"
OF_JOURNAL: Final = "The journal alone, D8_ENCRYPT=1 over without"
SEALING: Final = "To seal and to open a payload"
OVER: Final = "The whole mesh, D8_ENCRYPT=1 over without"


@dataclass(slots=True)
class Best:
    """The best of some turns: tasks/s in batches, seconds for one task, with its commits."""

    batched: float = 0.0
    single_s: float = float("inf")


class _Side:
    """A journal that takes tasks."""

    def __init__(self, folder: Path, *, is_sealed: bool) -> None:
        self._journal = Journal(folder / "journal.db", is_sealed=is_sealed)
        self._spec, self._next = Spec("echo", 5, 3), 0
        self.best = Best()

    def turn(self, batches: int, singles: int) -> None:
        began = time.perf_counter()
        for _ in range(batches):
            self._run(BATCH)
        middle = time.perf_counter()
        for _ in range(singles):
            self._run(1)
        ended = time.perf_counter()
        best = self.best
        best.batched = max(best.batched, batches * BATCH / (middle - began))
        best.single_s = min(best.single_s, (ended - middle) / singles)

    def close(self) -> None:
        self._journal.close()

    def _run(self, count: int) -> None:
        """Accept tasks, and record their results: two commits."""
        first, self._next = self._next, self._next + count
        payloads = [bytes(PAYLOAD_BYTES)] * count
        ids = [f"{SESSION}-{n}" for n in range(first, first + count)]
        self._journal.append([Submitted(SESSION, first, self._spec, payloads, 1.0)])
        self._journal.append([Completed("w", ids, [1] * count, payloads, 2.0)])


def measure(plan: Plan) -> Findings:
    """Measure journals, sealing alone, and whole meshes."""
    found = Findings()
    found.note(f"The journal alone: {PAYLOAD_BYTES} B of data and as many of result for each task.")
    for turn in range(plan.rounds):
        say(f"journals: round {turn + 1}")
        best = journals(TURNS, plan.tasks(BATCHES, least=1), plan.tasks(SINGLES, least=2))
        for kind, each in zip((PLAIN, SEALED), best, strict=True):
            found.table(BATCHED, "tasks/s").add(kind.name, "tasks per second", each.batched)
            found.table(SINGLE, "µs").add(kind.name, "time", each.single_s * 1e6)
        for size, label in SIZES.items():
            found.table(SEALING, "µs").add("time", label, sealing_s(size) * 1e6)
    over = found.table(OF_JOURNAL, "×")
    for title, column in ((BATCHED, "tasks per second"), (SINGLE, "time")):
        table = found.table(title, "")
        tops, bottoms = table.samples(SEALED.name, column), table.samples(PLAIN.name, column)
        over.cells[title, column] = ratios(tops, bottoms)
    compare(found, plan, SEALED, PLAIN, OVER)
    return found


def journals(turns: int, batches: int, singles: int) -> tuple[Best, Best]:
    """Return what a plain journal and an encrypted one take."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [_Side(Path(folder) / str(each), is_sealed=each) for each in (False, True)]
        for turn in range(turns):
            for side in rotated(sides, turn):
                side.turn(batches, singles)
        for side in sides:
            side.close()
    return sides[0].best, sides[1].best


def sealing_s(size: int, *, turns: int = 200) -> float:
    """Return how long it takes to seal and open one payload of this size, at best."""
    seal, payload, best = Seal(bytes(32)), bytes(size), float("inf")
    for _ in range(turns):
        began = time.perf_counter()
        seal.open(DATA_COLUMN, 1, seal.close(DATA_COLUMN, 1, payload))
        best = min(best, time.perf_counter() - began)
    return best
