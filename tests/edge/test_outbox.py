"""The outbox: what was kept is there again, once."""

from __future__ import annotations

from pathlib import Path

import apsw
import filelock
import pytest

from d8mesh.core.worker_effects import Kept
from d8mesh.edge.outbox import LOCK_NAME, OUTBOX_NAME, Outbox, adopt
from d8mesh.errors import WorkerError


def _results(count: int, start: int = 0) -> list[Kept]:
    return [
        Kept("broker", f"0000000000000000-{n}", n.to_bytes(16, "big"), n % 3, b"\x80")
        for n in range(start, start + count)
    ]


def test_what_was_kept_is_there_after_reopening_and_forgotten_results_are_not(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(_results(200))
    outbox.forget([row.token for row in _results(150)] + [b"unknown"])
    outbox.close()
    again = Outbox(tmp_path)
    assert again.load() == _results(50, start=150)
    again.keep(_results(50, start=150))  # the same once more is the same
    assert len(again.load()) == 50
    again.close()


def test_an_outbox_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    db = apsw.Connection(str(tmp_path / OUTBOX_NAME))
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(WorkerError, match="99"):
        Outbox(tmp_path)


def test_a_broken_outbox_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / OUTBOX_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(WorkerError, match="Move it away"):
        Outbox(tmp_path)


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
