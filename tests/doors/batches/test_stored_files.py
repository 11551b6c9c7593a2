"""Files of clients on the disk: durable, under names of ours, bounded."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from d8mesh.doors.batches import stored_files
from d8mesh.doors.batches.stored_files import FileFolder, StoredFile, write_durably
from d8mesh.errors import DiskLowError, QueueFullError


def folder(path: Path, *kept: str) -> FileFolder:
    found = FileFolder(path / "files", 0)
    found.open(kept)
    return found


def stored(files: FileFolder, *, at: int = 1, expires_at: int | None = None) -> StoredFile:
    file = StoredFile(
        id=files.new_id(),
        size_bytes=3,
        created_at=at,
        name="../../etc/x.jsonl",
        purpose="batch",
        expires_at=expires_at,
    )
    files.path(file.id).write_bytes(b"abc")
    files.write_note(file)
    files.add(file)
    return file


def test_files_are_there_after_a_restart_in_their_order(tmp_path: Path) -> None:
    files = folder(tmp_path)
    second, first = stored(files, at=2), stored(files, at=1)
    assert list(folder(tmp_path).listed()) == [first, second]


def test_a_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    files = folder(tmp_path)
    stored(files)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
    with pytest.raises(ValueError, match="no id"):
        files.path("../x")


def test_content_that_nobody_finished_is_removed_but_not_what_a_batch_writes(
    tmp_path: Path,
) -> None:
    files = folder(tmp_path)
    torn, written = files.new_id(), files.new_id()
    for file_id in (torn, written):
        files.path(file_id).write_bytes(b"x")
    again = folder(tmp_path, written)
    assert (again.path(torn).exists(), again.path(written).exists()) == (False, True)


def test_a_removed_file_leaves_nothing(tmp_path: Path) -> None:
    files = folder(tmp_path)
    files.remove(stored(files).id)
    assert list((tmp_path / "files").iterdir()) == []


def test_files_go_when_their_time_is_over_and_nobody_uses_them(tmp_path: Path) -> None:
    files = folder(tmp_path)
    used, over, later = (stored(files, expires_at=at) for at in (5, 5, 50))
    assert files.expire(10.0, in_use=lambda file_id: file_id == used.id) == [over.id]
    assert [each.id for each in files.listed()] == [used.id, later.id]


def test_a_file_that_does_not_fit_is_refused_before_it_comes(tmp_path: Path) -> None:
    with pytest.raises(DiskLowError, match="do not fit"):
        folder(tmp_path).check_room(2**60)


def test_there_are_only_so_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_files, "MAX_STORED", 1)
    files = folder(tmp_path)
    files.check_room(1)
    stored(files)
    with pytest.raises(QueueFullError):
        files.check_room(1)


def test_what_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_durably(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskLowError):
        write_durably(path, b"second")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"first"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_nobody_else_may_read_what_is_written(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    files = folder(tmp_path)
    assert list(files.listed()) == []
    with pytest.raises((DiskLowError, OSError)):
        stored(files)
