"""A file that only grows has whole lines, whoever was killed while he wrote."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from d8mesh.doors.batches.line_file import LineFile
from d8mesh.errors import DiskLowError


def opened(path: Path) -> tuple[LineFile, list[bytes]]:
    file, lines = LineFile(path), list[bytes]()
    file.open(lines.append)
    return file, lines


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    file, lines = opened(tmp_path / "a")
    assert lines == []
    file.append([b"1", b"2"])
    file.append([b"3"])
    file.close()
    again, lines = opened(tmp_path / "a")
    again.close()
    assert lines == [b"1", b"2", b"3"]


def test_a_torn_last_line_is_cut_off_and_the_file_goes_on_behind_the_whole_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"whole\nto")
    file, lines = opened(path)
    assert lines == [b"whole"]
    file.append([b"next"])
    file.close()
    assert path.read_bytes() == b"whole\nnext\n"


def test_of_lines_that_do_not_fit_none_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    file, _ = opened(path)
    file.append([b"first"])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskLowError, match="No space left"):
            file.append([b"second"])
    assert path.read_bytes() == b"first\n"
    file.append([b"second"])
    file.close()
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    opened(tmp_path / "a")[0].close()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
