"""Outboxes that are damaged, or left behind: what is in them goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.outbox import LOCK_NAME, OUTBOX_NAME, Outbox
from d8mesh.edge.sqlite.recovery.mend import adopt, open_mended
from d8mesh.errors import OutboxBrokenError


def _results(count: int, start: int = 0) -> list[KeptResult]:
    return [
        KeptResult("broker", f"0000000000000000-{n}", n.to_bytes(16, "big"), n % 3, b"\x80")
        for n in range(start, start + count)
    ]


def test_a_broken_outbox_is_set_aside_and_what_can_be_read_goes_on(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(
        [KeptResult("b", f"task-{n}", n.to_bytes(16, "big"), 1, b"p" * 900) for n in range(200)]
    )
    outbox.close()
    path = tmp_path / OUTBOX_NAME
    content = bytearray(path.read_bytes())
    at = len(content) // 2 // 4096 * 4096
    content[at : at + 4096] = bytes(4096)
    path.write_bytes(content)
    again, mended = open_mended(tmp_path)
    assert mended is not None
    assert mended.damaged_pages == 1
    assert mended.moved_to.read_bytes() == content
    assert mended.saved == len(again.load())
    assert 190 <= mended.saved < 200
    again.close()
    again, mended = open_mended(tmp_path)
    assert mended is None
    again.close()


def test_nothing_to_be_read_is_said_too(tmp_path: Path) -> None:
    (tmp_path / OUTBOX_NAME).write_bytes(b"no database" * 1000)
    outbox, mended = open_mended(tmp_path)
    assert outbox.load() == []
    assert mended is not None
    assert (mended.saved, mended.damaged_pages) == (0, 1)
    outbox.close()


def test_a_result_that_is_not_what_was_written_is_not_handed_in(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(_results(3))
    outbox._db.execute("UPDATE results SET payload = x'81' WHERE rowid = 2")
    with pytest.raises(OutboxBrokenError, match="not what was written"):
        outbox.load()
    outbox.close()
    outbox, mended = open_mended(tmp_path)
    assert mended is not None
    assert (mended.saved, mended.damaged) == (2, 1)
    assert [row.task_id[-1] for row in outbox.load()] == ["0", "2"]
    outbox.close()


def test_mending_goes_on_after_a_power_cut_between_its_moves(tmp_path: Path) -> None:
    good = Outbox(tmp_path / "good")
    good.keep(_results(4))
    good.close()
    (tmp_path / "good" / OUTBOX_NAME).rename(tmp_path / f"{OUTBOX_NAME}.new")
    outbox, _ = open_mended(tmp_path)  # the old one had been moved, the new one had not
    assert outbox.load() == _results(4)
    outbox.close()


def test_only_outboxes_that_nobody_holds_are_adopted(tmp_path: Path) -> None:
    for name, start in (("2", 100), ("3", 200)):
        other = Outbox(tmp_path / name)
        other.keep(_results(5, start=start))
        other.close()
    own = Outbox(tmp_path / "1")
    with filelock.FileLock(tmp_path / "3" / LOCK_NAME):
        assert adopt(own, tmp_path, own_folder=tmp_path / "1") == 5
    assert own.load() == _results(5, start=100)
    assert adopt(own, tmp_path, own_folder=tmp_path / "1") == 5
    assert len(own.load()) == 10
    own.close()
