"""Files and folders for this user alone, whatever the umask says."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.errors import KeyFileError
from d8mesh.private import (
    make_file,
    make_folder,
    make_once,
    narrow,
    refuse_shared,
    replace_file,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_closed_to_others_and_so_are_the_folders_above(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_folder(folder)
    make_file(folder / "file")
    replace_file(folder / "text", b"x")
    make_once(folder / "c" / "key", "y")
    assert [_mode(each) for each in (tmp_path / "a", folder, folder / "c")] == [0o700] * 3
    assert [_mode(folder / each) for each in ("file", "text", "c/key")] == [0o600] * 3


def test_what_is_there_is_narrowed_and_keeps_what_it_holds(tmp_path: Path) -> None:
    folder, path = tmp_path / "wide", tmp_path / "wide" / "file"
    folder.mkdir()
    path.write_text("kept", "utf-8")
    make_folder(folder)
    make_file(path)
    assert (_mode(folder), _mode(path), path.read_text("utf-8")) == (0o700, 0o600, "kept")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("", "utf-8")
    link.symlink_to(real)
    narrow(link)
    assert _mode(real) == 0o666


def test_a_secret_that_is_there_stays(tmp_path: Path) -> None:
    make_once(tmp_path / "key", "first")
    make_once(tmp_path / "key", "second")
    assert (tmp_path / "key").read_text("utf-8") == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_a_file_that_the_disk_does_not_take_is_as_it_was_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "file", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "file", b"after")
    with pytest.raises(OSError, match="No space left"):
        make_once(tmp_path / "key", "secret")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"before")]


def test_a_secret_that_others_can_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refuse_shared(tmp_path / "key", 0o100600, "delete it")
    with pytest.raises(KeyFileError) as refused:
        refuse_shared(tmp_path / "key", 0o100640, "delete it")
    for part in ("mode 0640", f"chmod 600 {tmp_path / 'key'}", "delete it", "set D8_DATA_DIR"):
        assert part in str(refused.value)
