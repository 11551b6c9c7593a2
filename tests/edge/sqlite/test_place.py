"""A journal is refused on a network disk, on each system by what that system says."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest

from d8mesh.edge.sqlite import place
from d8mesh.edge.sqlite.place import refuse_network_disk
from d8mesh.errors import JournalBrokenError, JournalError

MACOS = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect)
//ana@nas._smb._tcp.local/My%20Files on {root}/share (smbfs, nodev, nosuid, mounted by ana)
nas:/export on the rack on {root}/nfs (two) (nfs)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
/dev/disk4s1 on {root}/share/usb (exfat, local, nodev)
"""


def refused(folder: Path) -> str:
    """Return the refusal of a journal in the folder; "" if it may lie there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        refuse_network_disk(folder / "journal.db")
    except JournalBrokenError as error:
        return str(error)
    return ""


def test_a_disk_of_this_machine_is_taken(tmp_path: Path) -> None:
    assert refused(tmp_path) == ""


def test_on_linux_the_nearest_mount_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mounts"
    root = str(tmp_path).replace(" ", "\\040")
    table.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nnas:/x {root}/Größe\\040zwei nfs4 rw 0 0\n"
        f"/dev/sdb1 {root}/Größe\\040zwei/usb ext4 rw 0 0\n//nas/y {root}/smb cifs rw 0 0\nodd\n",
        "utf-8",
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(place, "_MOUNTS", table)
    assert "network file system (nfs4)" in refused(tmp_path / "Größe zwei" / "d8")
    assert "network file system (cifs)" in refused(tmp_path / "smb")
    assert refused(tmp_path / "Größe zwei" / "usb") == ""
    assert refused(tmp_path / "smb2") == ""
    monkeypatch.setattr(place, "_MOUNTS", tmp_path / "none")
    assert refused(tmp_path / "smb") == ""


def test_on_macos_what_mount_prints_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(argv: list[str], **_: Any) -> SimpleNamespace:
        assert argv == ["/sbin/mount"]
        return SimpleNamespace(stdout=MACOS.format(root=tmp_path).encode())

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", mount)
    assert "network file system (smbfs)" in refused(tmp_path / "share" / "d8")
    assert "network file system (nfs)" in refused(tmp_path / "nfs (two)")
    assert refused(tmp_path / "share" / "usb" / "d8") == ""
    assert refused(tmp_path / "elsewhere") == ""


def test_on_macos_a_mount_that_hangs_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("mount", timeout)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", hang)
    assert refused(tmp_path) == ""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("\\\\nas\\share\\d8", "remote"),
        ("Z:\\d8", "remote"),
        ("C:\\Users\\ana\\d8", ""),
    ],
)
def test_on_windows_a_share_is_told_by_its_form_or_its_letter(
    monkeypatch: pytest.MonkeyPatch, folder: str, kind: str
) -> None:
    kernel = SimpleNamespace(GetDriveTypeW=lambda anchor: 4 if anchor == "Z:\\" else 3)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert place._kind_on_windows(PureWindowsPath(folder)) == kind  # type: ignore[arg-type]


def test_a_lock_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "journal.db.lock"
    lock.mkdir()  # the superuser may open every file
    with pytest.raises(JournalError, match=r"journal\.db cannot be used .* D8_DATA_DIR"):
        place.Lock(lock)
