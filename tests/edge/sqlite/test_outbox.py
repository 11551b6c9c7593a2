"""The outbox: what was kept is there again, once."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox
from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE
from d8mesh.edge.sqlite.recovery.mend import adopt, open_mended
from d8mesh.errors import OutboxBrokenError, OutboxKeyError, WorkerError

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


SECRET = b"MARK-OF-A-SECRET"


def _secrets(count: int) -> list[KeptResult]:
    return [
        row._replace(payload=SECRET + bytes([n % 256])) for n, row in enumerate(_results(count))
    ]


def _holds_secret(folder: Path) -> bool:
    return any(SECRET in each.read_bytes() for each in folder.iterdir())


def test_encrypted_results_are_nowhere_in_clear_and_are_read_as_they_were(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, is_sealed=True)
    outbox.keep(_secrets(100))
    assert not _holds_secret(tmp_path)
    outbox.close()
    as_it_was = Outbox(tmp_path)
    as_it_was.keep(_results(200, start=100))
    assert as_it_was.load() == _secrets(100) + _results(200, start=100)
    as_it_was.close()
    assert not _holds_secret(tmp_path)


def test_an_empty_outbox_stays_encrypted_when_it_is_opened_again(tmp_path: Path) -> None:
    Outbox(tmp_path, is_sealed=True).close()
    outbox = Outbox(tmp_path)
    outbox.keep(_secrets(1))
    assert not _holds_secret(tmp_path)
    outbox.close()


def test_what_was_kept_in_clear_is_encrypted_and_the_other_way_round(tmp_path: Path) -> None:
    for is_sealed in (False, True, False):
        outbox = Outbox(tmp_path, is_sealed=is_sealed)
        if not outbox.load():
            outbox.keep(_secrets(300))
        assert outbox.load() == _secrets(300)
        assert _holds_secret(tmp_path) is not is_sealed
        outbox.close()
        assert _holds_secret(tmp_path) is not is_sealed


def test_an_encrypted_outbox_without_its_key_is_refused_and_nothing_is_changed(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path, is_sealed=True)
    outbox.keep(_secrets(3))
    outbox.close()
    key = tmp_path / PAYLOAD_KEY_FILE
    kept, content = key.read_text("utf-8"), (tmp_path / OUTBOX_NAME).read_bytes()
    key.unlink()
    for is_sealed in (True, False, None):
        with pytest.raises(OutboxKeyError, match="the key is missing: put"):
            open_mended(tmp_path, is_sealed=is_sealed)
    key.write_text(kept[:-65] + "0" * 64 + "\n", "utf-8")
    key.chmod(0o600)
    with pytest.raises(OutboxKeyError, match="another key than that in"):
        open_mended(tmp_path)
    assert (tmp_path / OUTBOX_NAME).read_bytes() == content
    key.write_text(kept, "utf-8")
    again, mended = open_mended(tmp_path)
    assert (again.load(), mended) == (_secrets(3), None)
    again.close()


def test_a_damaged_encrypted_outbox_is_mended_and_another_worker_adopts_it(tmp_path: Path) -> None:
    left, own = tmp_path / "1", tmp_path / "2"
    outbox = Outbox(left, is_sealed=True)
    outbox.keep(_secrets(50))
    outbox.close()
    content = bytearray((left / OUTBOX_NAME).read_bytes())
    content[100:108] = bytes(8)  # the head of the first page
    (left / OUTBOX_NAME).write_bytes(content)
    mine = Outbox(own, is_sealed=True)
    assert adopt(mine, tmp_path, own_folder=own) == 50
    assert sorted(mine.load()) == sorted(_secrets(50))
    mine.close()
    assert not _holds_secret(own)
