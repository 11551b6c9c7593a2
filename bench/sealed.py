"""What `D8_ENCRYPT=1` costs: a journal with and without, in alternating turns of one run.

    python -m bench.sealed

Durable tasks in batches and one by one, from the submission to the recorded result, on the disk of
the temporary folder; and what sealing alone takes. Each figure is the best of all turns: other work
on the machine makes a turn slower, never faster.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from d8mesh.core.protocol.task import Completed, Spec, Submitted
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.seal import DATA_COLUMN, Seal

SESSION: Final = "0123456789abcdef"
#: Bytes of a task's data, and of its result.
PAYLOAD_BYTES: Final = 200
BATCH: Final = 1000
BATCHES: Final = 20
SINGLES: Final = 300
TURNS: Final = 5
#: Sizes of payloads that are sealed alone.
SIZES: Final = (200, 1000, 32_000, 1_000_000)


@dataclass(slots=True)
class Best:
    """The best of the turns so far: tasks/s in batches, seconds for one task, with its commits."""

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


def journals(turns: int, batches: int, singles: int) -> tuple[Best, Best]:
    """Return what a plain journal and an encrypted one take."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [_Side(Path(folder) / str(each), is_sealed=each) for each in (False, True)]
        for turn in range(turns):
            for side in sides if turn % 2 else sides[::-1]:
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


def main() -> None:
    """Measure, and print a table."""
    plain, sealed = journals(TURNS, BATCHES, SINGLES)
    print(f"batches of {BATCH}, tasks/s: {plain.batched:.0f}, encrypted {sealed.batched:.0f}")
    print(f"  ratio {sealed.batched / plain.batched:.2f}")
    print(
        f"one by one, ms: {plain.single_s * 1e3:.3f} plain, {sealed.single_s * 1e3:.3f} encrypted"
    )
    print(f"  ratio {sealed.single_s / plain.single_s:.2f}")
    for size in SIZES:
        took = sealing_s(size)
        speed = size / took / 1e6
        print(f"sealed and opened, {size} bytes: {took * 1e6:.1f} µs ({speed:.0f} MB/s)")


if __name__ == "__main__":
    main()
