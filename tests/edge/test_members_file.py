"""The file of members: read back, replaced in one step, nobody else's, refused when damaged."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d8mesh.core.broker.members_view import KeptMember, Membership
from d8mesh.edge.members_file import MAX_MEMBERS_FILE_BYTES, MEMBERS_NAME, read, write
from d8mesh.errors import ConfigError

ROW = KeptMember(
    key="0a" * 32,
    standing=Membership.REVOKED,
    kind="worker",
    name='pi "7" \x1b[31m',
    address="10.0.0.7",
    worker_ids=("pi", "pi-2"),
    since_at=1.5,
    seen_at=2.5,
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    write(tmp_path, [ROW])
    write(tmp_path, [ROW, KeptMember(key="0b" * 32, standing=Membership.ADMITTED)])
    assert [row.key[:2] for row in read(tmp_path)] == ["0a", "0b"]
    assert read(tmp_path)[0] == ROW
    assert [path.name for path in tmp_path.iterdir()] == [MEMBERS_NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_nobody_else_may_read_or_write_it_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / f"{MEMBERS_NAME}.new").write_text("left by a crash")
    (tmp_path / f"{MEMBERS_NAME}.new").chmod(0o666)
    before = os.umask(0)
    try:
        write(tmp_path, [ROW])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / MEMBERS_NAME).stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_have_written_is_refused(tmp_path: Path, mode: int) -> None:
    write(tmp_path, [])
    (tmp_path / MEMBERS_NAME).chmod(mode)
    with pytest.raises(ConfigError, match=r"others on this machine can write it.*chmod 600"):
        read(tmp_path)
    (tmp_path / MEMBERS_NAME).chmod(0o644)
    assert read(tmp_path) == []


def test_a_disk_that_refuses_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [ROW])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, [])
    assert read(tmp_path) == [ROW]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"version":2,"members":[]}',
        b'{"members":[{"key":"0a","standing":"admitted"}]}',
        b'{"members":[{"key":"%s","standing":"friend"}]}' % (b"0a" * 32),
        b'{"members":[{"key":"%s","standing":"admitted","name":7}]}' % (b"0a" * 32),
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MEMBERS_NAME).write_bytes(text)
    with pytest.raises(ConfigError, match="copy of it back"):
        read(tmp_path)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MEMBERS_NAME).open("wb") as file:
        file.truncate(MAX_MEMBERS_FILE_BYTES + 10)
    with pytest.raises(ConfigError, match="larger than"):
        read(tmp_path)


@given(st.binary(max_size=300))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_members_or_a_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MEMBERS_NAME).write_bytes(text)
    with contextlib.suppress(ConfigError):
        assert isinstance(read(tmp_path), list)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be synced there")
def test_the_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(stat.S_ISDIR(os.fstat(number).st_mode))
    )
    write(tmp_path, [ROW])
    assert synced == [False, True]
