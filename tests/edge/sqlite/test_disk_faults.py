"""A disk that is full or fails, at every early write and sync of the journal and the outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from d8mesh.core.protocol.task import Completed, Fact, Spec, Submitted
from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.outbox import Outbox
from d8mesh.errors import JournalBrokenError, JournalError, OutboxBrokenError, WorkerError

#: SQLite has nobody to tell of a fault while it closes or checkpoints.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

S = "0123456789abcdef"
NAME = "d8-faulty"
#: Operations before the fault, one test each; with 30 pages to a checkpoint all kinds are met.
EARLY = 120
COMMITS = 40
CHECKPOINT_PAGES = 30


class FaultyDisk(apsw.VFS):
    """Counts writes, truncations and syncs, and fails from the `after`-th on, or just then."""

    def __init__(self) -> None:
        self.after = -1
        self.is_lasting = True
        self.count = 0
        self.fault: type[apsw.Error] = apsw.FullError
        self.only = ""
        super().__init__(NAME, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        """Open a file on it."""
        return _File(self, name, flags)

    def touch(self, what: str) -> None:
        """Fail if it is time."""
        if self.only and what != self.only:
            return
        self.count += 1
        is_due = self.count > self.after if self.is_lasting else self.count == self.after + 1
        if self.after >= 0 and is_due:
            raise self.fault("the disk said no")


class _File(apsw.VFSFile):
    def __init__(
        self, disk: FaultyDisk, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        self._disk = disk
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write, or fail."""
        self._disk.touch("write")
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        """Truncate, or fail."""
        self._disk.touch("truncate")
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        """Sync, or fail: then what was written may be there or not."""
        self._disk.touch("sync")


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    made = FaultyDisk()
    yield made
    made.unregister()


def facts(at: int) -> list[Fact]:
    submitted = Submitted(S, at * 5, Spec("echo", 5, 3), [b"x" * 700] * 5, 1.0)
    if not at:
        return [submitted]
    done = Completed("w", [f"{S}-{at * 5 - 5}"], [1], [b"result"], 2.0)
    return [submitted, done]


KINDS = [(apsw.FullError, ""), (apsw.IOError, ""), (apsw.IOError, "sync")]


@pytest.mark.parametrize("is_lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize(("fault", "only"), KINDS, ids=["full", "error", "error-sync"])
def test_wherever_the_disk_fails_nothing_acknowledged_is_lost(
    tmp_path: Path, disk: FaultyDisk, fault: type[apsw.Error], only: str, is_lasting: bool
) -> None:
    disk.fault, disk.only, disk.is_lasting = fault, only, is_lasting
    met = 0
    for after in range(0, EARLY, 3):
        path = tmp_path / str(after) / "journal.db"
        disk.after, disk.count = after, 0
        acknowledged = -1
        try:
            journal = Journal(path, vfs=NAME, checkpoint_pages=CHECKPOINT_PAGES)
            try:
                journal.restore()
                for at in range(COMMITS):
                    journal.append(facts(at))
                    acknowledged = at
            finally:
                journal.close()
        except JournalBrokenError:
            raise
        except JournalError:
            met += 1
        disk.after = -1
        again = Journal(path, vfs=NAME)  # as the launcher does once there is room again
        restored = again.restore()
        count = sum(batch.count for batch, _ in restored.batches)
        # The commit that failed may be there: it was promised to nobody.
        assert count in (5 * (acknowledged + 1), 5 * (acknowledged + 2)), after
        assert restored.totals.completed in (max(acknowledged, 0), max(acknowledged + 1, 0))
        again.append(facts(count // 5))
        again.close()
    assert met >= (10 if is_lasting else 1)


@pytest.mark.parametrize("is_lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize(("fault", "only"), KINDS, ids=["full", "error", "error-sync"])
def test_an_outbox_on_such_a_disk_keeps_what_it_said_it_kept(
    tmp_path: Path, disk: FaultyDisk, fault: type[apsw.Error], only: str, is_lasting: bool
) -> None:
    disk.fault, disk.only, disk.is_lasting = fault, only, is_lasting
    for after in range(0, EARLY, 3):
        folder = tmp_path / str(after)
        disk.after, disk.count = after, 0
        kept: set[bytes] = set()
        failed: list[KeptResult] = []
        try:
            outbox = Outbox(folder, vfs=NAME, checkpoint_pages=CHECKPOINT_PAGES)
        except OutboxBrokenError:
            raise
        except WorkerError:
            disk.after = -1
            outbox = Outbox(folder, vfs=NAME)
        for at in range(COMMITS):
            results = [KeptResult("b", f"{S}-{at}", at.to_bytes(16, "big"), 1, b"p" * 900)]
            try:
                outbox.keep(results)
                kept.add(results[0].token)
            except WorkerError:
                failed += results
        disk.after = -1
        outbox.keep(failed)  # the same object goes on when there is room again
        kept |= {row.token for row in failed}
        outbox.close()
        again = Outbox(folder, vfs=NAME)
        assert {row.token for row in again.load()} == kept
        again.close()
