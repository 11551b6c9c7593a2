"""The outbox: what was kept is there again, once."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox
from d8mesh.errors import OutboxBrokenError, WorkerError

S = "0123456789abcdef"


def _results(count: int, start: int = 0) -> list[KeptResult]:
    return [
        KeptResult("broker", f"0000000000000000-{n}", n.to_bytes(16, "big"), n % 3, b"\x80")
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


def test_a_broken_outbox_is_refused_by_who_does_not_mend_it(tmp_path: Path) -> None:
    (tmp_path / OUTBOX_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(OutboxBrokenError, match="is damaged"):
        Outbox(tmp_path)


def test_an_outbox_of_version_1_is_copied_and_brought_up_to_date(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / OUTBOX_NAME))
    db.execute(
        "CREATE TABLE results(token BLOB PRIMARY KEY, broker TEXT NOT NULL, task TEXT NOT NULL,"
        " kind INTEGER NOT NULL, payload BLOB NOT NULL); PRAGMA user_version=1"
    )
    for row in _results(9):
        values = (row.token, row.broker_id, row.task_id, row.kind, row.payload)
        db.execute("INSERT INTO results VALUES (?,?,?,?,?)", values)
    db.close()
    outbox = Outbox(tmp_path)
    assert outbox.load() == _results(9)
    outbox.keep(_results(1, start=9))
    outbox.close()
    assert Outbox(tmp_path).load() == _results(10)
    (copy,) = tmp_path.glob("outbox-v1-*.db")
    db = apsw.Connection(str(copy))
    assert db.pragma("user_version") == 1
    assert db.execute("SELECT count(*) FROM results").fetchall() == [(9,)]
    db.close()


@pytest.mark.parametrize("size", [30, 3000, 30_000])
def test_what_was_forgotten_is_nowhere_once_it_is_wiped(tmp_path: Path, size: int) -> None:
    outbox, dice = Outbox(tmp_path), random.Random(size)
    mark, kept = b"SECRET-MARKER", dict[bytes, KeptResult]()
    assert not outbox.needs_wiping
    for number in range(30):
        text = mark * (size // len(mark) + 1)
        rows = [KeptResult("b", f"{S}-{n}", dice.randbytes(16), 1, text) for n in range(5)]
        outbox.keep([row._replace(payload=b"harmless") if number < 3 else row for row in rows])
        kept |= {row.token: row for row in rows}
        gone = dice.sample(sorted(kept), len(kept) // 3)
        outbox.forget(gone)
        for token in gone:
            del kept[token]
    outbox.forget([row.token for row in outbox.load() if row.payload != b"harmless"])
    left = outbox.load()
    assert [outbox.needs_wiping, outbox.wipe(), outbox.needs_wiping] == [True, True, False]
    assert all(mark not in path.read_bytes() for path in tmp_path.iterdir())
    assert outbox.load() == left
    outbox.close()


def test_an_outbox_that_holds_much_is_wiped_when_it_holds_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.edge.sqlite.outbox.MAX_RENEWED_BYTES", 10)
    outbox = Outbox(tmp_path)
    outbox.keep(_results(20))
    outbox.forget([row.token for row in _results(5)])
    assert not outbox.wipe()
    assert outbox.needs_wiping
    outbox.forget([row.token for row in _results(12)])
    assert outbox.wipe()
    outbox.close()


def test_the_outbox_of_a_worker_that_was_killed_is_wiped(tmp_path: Path) -> None:
    killed, own = tmp_path / "killed", tmp_path / "own"
    outbox = Outbox(killed)
    outbox.keep(_results(3))
    own.mkdir()
    for path in killed.glob("outbox.db*"):
        (own / path.name).write_bytes(path.read_bytes())
    again = Outbox(own)
    assert [again.needs_wiping, again.wipe(), again.needs_wiping] == [True, True, False]
    assert again.load() == _results(3)
    for each in (again, outbox):
        each.close()
