"""Key files: made once, kept, and refused when others can read them."""

from __future__ import annotations

import stat
import sys
import threading
from pathlib import Path

import pytest

from d8mesh.edge.transport.keys import KEY_FILE, KeyPair, kept_pair, new_pair, public_key_in
from d8mesh.errors import KeyFileError


def test_a_pair_is_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    made = kept_pair(folder)
    assert kept_pair(folder) == made
    assert public_key_in(folder) == made.public
    assert len(made.public) == len(made.secret) == 32
    assert kept_pair(tmp_path / "other") != made


def test_two_that_make_one_at_the_same_time_end_up_with_the_same(tmp_path: Path) -> None:
    found: list[KeyPair] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(kept_pair(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({each.public for each in found}) == 1
    assert [each.name for each in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes")
def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    kept_pair(tmp_path)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="mode 0640, expected 0600"):
        kept_pair(tmp_path)
    assert public_key_in(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"secret 12", b"\xff" * 100, b"x" * 5000])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="64 hex digits"):
        kept_pair(tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="file"):
        kept_pair(tmp_path / "file" / "below")


def test_the_secret_is_not_shown() -> None:
    pair = new_pair()
    assert pair.secret.hex() not in repr(pair)
    assert repr(pair.secret) not in repr(pair)
