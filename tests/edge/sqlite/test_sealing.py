"""A journal with encrypted payloads: nothing in clear on the disk, everything as before with it."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec
import pytest

from d8mesh.core.broker.store import (
    BatchPayloads,
    DetailsOf,
    EndOf,
    FinishedStates,
    FinishedTask,
    OutcomesOf,
    PayloadsOf,
    TaskDetails,
)
from d8mesh.core.protocol.task import (
    Assigned,
    Completed,
    Erased,
    ErasureSet,
    Failed,
    Requeued,
    Spec,
    Submitted,
)
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE
from d8mesh.edge.sqlite.recovery.recover import recover
from d8mesh.edge.sqlite.schema import fetch
from d8mesh.edge.sqlite.sealing import FRESH_SUFFIX, OLD_SUFFIX
from d8mesh.errors import JournalBrokenError, JournalKeyError, KeyFileError

S = "0123456789abcdef"
D = "1123456789abcdef"
SECRET = b"MARK-OF-A-SECRET"
IDS = [f"{S}-{n}" for n in range(6)]
SAID = f"{D}-0"


def _secret(what: str) -> bytes:
    return msgspec.msgpack.encode({"said": f"{SECRET.decode()} {what}"})


def _fill(journal: Journal) -> None:
    """Six tasks of a client, of which one fails, and two of a door."""
    spec = Spec("echo", 5, 3)
    asked = [_secret(f"asked {n}") for n in range(6)]
    journal.append([Submitted(S, 0, spec, asked, 1.0, key="k", digest=b"d" * 32, key_count=6)])
    door = Spec("chat", 5, 3, source="ollama 127.0.0.1 curl")
    journal.append([Submitted(D, 0, door, [_secret("chat 0"), _secret("chat 1")], 1.0)])
    journal.append([Assigned(1, "w1", IDS[:3], [1, 1, 1], 1.5)])
    why = _secret("why").decode("latin-1")
    journal.append([Requeued("w1", [IDS[0]], [1], why, 1.7, traceback=why)])
    journal.append([Completed("w1", IDS[:2], [2, 1], [_secret("r0"), _secret("r1")], 2.0)])
    journal.append([Failed("w1", [IDS[2]], [1], [_secret("failed")], 2.0, why)])
    said = [_secret("answer 0"), _secret("answer 1")]
    journal.append([Completed("w1", [SAID, f"{D}-1"], [1, 1], said, 3.0)])


def _seen(journal: Journal) -> list[object]:
    """Return all that can be asked of it."""
    ids = [*IDS, SAID, f"{D}-1"]
    restored = journal.restore()
    return [
        journal.ask(OutcomesOf(ids)),
        *(journal.ask(EndOf(each)) for each in ids),
        *(journal.ask(DetailsOf(each)) for each in ids),
        journal.ask(PayloadsOf(S, 0)),
        restored.keys,
        restored.troubled.keys(),
        restored.totals,
    ]


def _with_secret(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if SECRET in each.read_bytes()]


@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, *, is_sealed: bool) -> None:
    journal = Journal(tmp_path / "journal.db", is_sealed=is_sealed)
    _fill(journal)
    assert bool(_with_secret(tmp_path)) is not is_sealed, "also in the log"
    answer = journal.ask(OutcomesOf(IDS[:3]))
    assert isinstance(answer, FinishedStates)
    assert answer.payloads == [_secret("r0"), _secret("r1"), _secret("failed")]
    data = journal.ask(PayloadsOf(S, 0))
    assert isinstance(data, BatchPayloads)
    assert data.payloads == [_secret(f"asked {n}") for n in range(6)]
    end = journal.ask(EndOf(IDS[2]))
    assert isinstance(end, FinishedTask)
    assert end.why == _secret("why").decode("latin-1")
    journal.close()
    assert bool(_with_secret(tmp_path)) is not is_sealed


def test_switching_on_and_off_changes_nothing_that_is_told_and_leaves_nothing_in_clear(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    _fill(journal)
    before = _seen(journal)
    journal.close()
    assert _with_secret(tmp_path) == ["journal.db"]
    sealed = Journal(path, is_sealed=True)
    assert _seen(sealed) == before
    assert _with_secret(tmp_path) == []
    sealed.close()
    assert _with_secret(tmp_path) == []
    again = Journal(path, is_sealed=True)
    assert _seen(again) == before
    again.close()
    plain = Journal(path)
    assert _seen(plain) == before
    plain.close()
    assert {each.name for each in tmp_path.iterdir()} == {
        *("journal.db", "journal.db.lock", "journal.db.holder", PAYLOAD_KEY_FILE)
    }


#: Dies, as `kill -9` ends a process, before its n-th change of the folder: files moved or deleted.
RESEAL = """
import os, signal, sys
from pathlib import Path
from d8mesh.edge.sqlite import Journal
left = int(sys.argv[3])
def dying(change):
    def changed(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os._exit(9)
        return change(*args, **kwargs)
    return changed
Path.replace, Path.unlink = dying(Path.replace), dying(Path.unlink)
Journal(Path(sys.argv[1]), is_sealed=sys.argv[2] == "True").close()
"""


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_kill_at_any_step_of_it_loses_nothing_and_the_next_start_goes_on(
    tmp_path: Path, *, is_sealed: bool
) -> None:
    made = tmp_path / "made"
    journal = Journal(made / "journal.db", is_sealed=not is_sealed)
    _fill(journal)
    before = _seen(journal)
    journal.close()
    for step in range(1, 20):
        folder = tmp_path / str(step)
        shutil.copytree(made, folder)
        path = folder / "journal.db"
        command = [sys.executable, "-c", RESEAL, str(path), str(is_sealed), str(step)]
        died = subprocess.run(command, timeout=60, check=False).returncode == 9
        after = Journal(path, is_sealed=is_sealed)
        assert _seen(after) == before
        after.close()
        assert bool(_with_secret(folder)) is not is_sealed
        assert not list(folder.glob(f"*{OLD_SUFFIX}")) + list(folder.glob(f"*{FRESH_SUFFIX}"))
        if not died:
            break
    assert step >= 4, "aside, in place, deleted, and not killed"


@pytest.mark.parametrize("is_sealed", [True, False])
def test_without_the_key_or_with_another_one_it_is_refused_and_nothing_is_changed(
    tmp_path: Path, *, is_sealed: bool
) -> None:
    path, key = tmp_path / "journal.db", tmp_path / PAYLOAD_KEY_FILE
    journal = Journal(path, is_sealed=True)
    _fill(journal)
    journal.close()
    content, kept = path.read_bytes(), key.read_text()
    key.unlink()
    with pytest.raises(JournalKeyError, match=f"key is missing: put .*{PAYLOAD_KEY_FILE} back"):
        Journal(path, is_sealed=is_sealed)
    assert not key.exists()
    key.write_text(kept[:-65] + "0" * 64 + "\n")
    key.chmod(0o600)
    with pytest.raises(JournalKeyError, match="another key than that in"):
        Journal(path, is_sealed=is_sealed)
    with pytest.raises(JournalKeyError, match="another key than that in"):
        recover(path, lambda text: None)
    assert path.read_bytes() == content
    key.write_text(kept)
    Journal(path, is_sealed=True).close()


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "journal.db", tmp_path / PAYLOAD_KEY_FILE
    Journal(path, is_sealed=True).close()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o640)
    with pytest.raises(KeyFileError, match=f"chmod 600 {key}"):
        Journal(path, is_sealed=True)


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_what_is_said_of_a_key_that_others_can_read_changes_it_and_loses_nothing(
    tmp_path: Path,
) -> None:
    path, key = tmp_path / "journal.db", tmp_path / PAYLOAD_KEY_FILE
    journal = Journal(path, is_sealed=True)
    _fill(journal)
    journal.close()
    before, mode = key.read_text(), 0o644
    key.chmod(mode)
    with pytest.raises(KeyFileError) as raised:
        Journal(path, is_sealed=True)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("chmod 600 ", lambda: key.chmod(0o600)),
        ("D8_ENCRYPT=0", lambda: Journal(path, is_sealed=False).close()),
        ("delete it", key.unlink),
        ("D8_ENCRYPT=1", lambda: Journal(path, is_sealed=True).close()),
    ]
    told = str(raised.value)
    said = sorted(steps, key=lambda step: told.index(step[0]))  # in the order of the sentence
    for _, step in said:
        step()
    assert key.read_text() != before
    journal = Journal(path, is_sealed=True)
    assert journal.ask(PayloadsOf(S, 0))
    journal.close()


def test_rows_that_were_swapped_are_not_taken_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, is_sealed=True)
    _fill(journal)
    journal.close()
    db = apsw.Connection(str(path))
    ((blob,),) = fetch(db, "SELECT payloads FROM batches WHERE seq = 1")
    payloads = msgspec.msgpack.decode(blob, type=list[bytes])
    payloads[3], payloads[4] = payloads[4], payloads[3]
    new = msgspec.msgpack.encode(payloads)
    db.execute("UPDATE batches SET payloads = ? WHERE seq = 1", (new,))
    db.close()
    journal = Journal(path, is_sealed=True)
    with pytest.raises(JournalBrokenError, match="cannot be decrypted"):
        journal.ask(PayloadsOf(S, 0))
    journal.close()


@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_is_erased_is_gone_and_what_is_kept_of_it_is_told(
    tmp_path: Path, *, is_sealed: bool
) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, is_sealed=is_sealed)
    _fill(journal)
    rest = msgspec.msgpack.encode({"erased": True, "model": "m"})
    journal.append([ErasureSet([f"{D}-1"], [rest], 9.0)])
    journal.append([Erased([SAID], [rest])])
    journal.append([Erased([f"{D}-1"], [b""])])
    for each in (SAID, f"{D}-1"):
        end = journal.ask(EndOf(each))
        assert isinstance(end, FinishedTask)
        assert (end.payload, end.is_erased) == (rest, True)
        details = journal.ask(DetailsOf(each))
        assert isinstance(details, TaskDetails)
        assert (details.payload, details.is_erased) == (b"", True)
    before = _seen(journal)
    journal.close()
    other = Journal(path, is_sealed=not is_sealed)
    assert _seen(other) == before
    other.close()


def test_recover_saves_what_opens_and_records_the_rest_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, is_sealed=True)
    _fill(journal)
    journal.close()
    db = apsw.Connection(str(path))
    ((blob,),) = fetch(db, "SELECT payloads FROM batches WHERE seq = 1")
    payloads = msgspec.msgpack.decode(blob, type=list[bytes])
    payloads[4] = payloads[4][:-1] + bytes([payloads[4][-1] ^ 1])
    new = msgspec.msgpack.encode(payloads)
    db.execute("UPDATE batches SET payloads = ? WHERE seq = 1", (new,))
    db.execute("DELETE FROM meta WHERE name = 'seal'")  # what tells of the key is lost too
    db.execute("DELETE FROM meta WHERE name = 'schema'")
    db.close()
    with pytest.raises(JournalBrokenError, match="recover"):
        Journal(path, is_sealed=True)
    report = recover(path, lambda text: None)
    assert (report.outcome, report.lost_data, report.lost_results) == ("recovered", [IDS[4]], [])
    journal = Journal(path, is_sealed=True)
    answer = journal.ask(OutcomesOf(IDS[:2]))
    assert isinstance(answer, FinishedStates)
    assert answer.payloads == [_secret("r0"), _secret("r1")]
    details = journal.ask(DetailsOf(IDS[3]))
    assert isinstance(details, TaskDetails)
    assert details.payload == _secret("asked 3")
    assert isinstance(journal.ask(EndOf(IDS[4])), FinishedTask)
    journal.close()


def test_recover_without_the_key_says_so_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, is_sealed=True)
    _fill(journal)
    journal.close()
    db = apsw.Connection(str(path))
    db.execute("DELETE FROM meta WHERE name IN ('seal', 'schema')")
    db.close()
    (tmp_path / PAYLOAD_KEY_FILE).unlink()
    content = path.read_bytes()
    with pytest.raises(JournalKeyError, match="the key is missing"):
        recover(path, lambda text: None)
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("*broken*"))
