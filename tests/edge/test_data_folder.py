"""A data folder that cannot be used is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from d8mesh.edge import data_folder
from d8mesh.errors import ConfigError


def test_what_is_missing_is_made_and_what_is_there_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        data_folder.require(tmp_path / "a" / "b", "orchestrator", "logs")
    assert (tmp_path / "a" / "b" / "orchestrator").is_dir()
    assert (tmp_path / "a" / "b" / "logs").is_dir()


@pytest.mark.parametrize("path", ["file", "file/below", "data-with-a-file-as-room"])
def test_what_cannot_be_a_folder_names_the_variable(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    (tmp_path / "data-with-a-file-as-room").mkdir()
    (tmp_path / "data-with-a-file-as-room" / "logs").write_text("", "utf-8")
    with pytest.raises(ConfigError) as caught:
        data_folder.require(tmp_path / path, "logs")
    message = str(caught.value)
    assert message.startswith("D8_DATA_DIR=")
    assert "expected a folder that can be written" in message
    assert "\n" not in message


NOBODY = 65534
AS_NOBODY = """
import os, sys
from pathlib import Path
from d8mesh.edge import data_folder
from d8mesh.errors import ConfigError
os.setgid({nobody}), os.setuid({nobody})
try:
    data_folder.require(Path(sys.argv[1]), "orchestrator", "workers", "logs")
except ConfigError as error:
    print(error)
"""


def told_to_nobody(data: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY.format(nobody=NOBODY), str(data)],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return line


as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only the superuser becomes another"
)


@as_root
@pytest.mark.parametrize("place", ["logs/web.log", "workers/1/id", "orchestrator/journal.db"])
def test_what_a_start_as_root_left_is_told_with_its_owner(place: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        Path(folder).chmod(0o755)
        data_folder.require(data, "orchestrator", "workers/1", "logs")
        for each in (data, *data.rglob("*")):
            os.chown(each, NOBODY, NOBODY)
        (data / place).write_text("", "utf-8")
        line = told_to_nobody(data)
    assert line.startswith(f"D8_DATA_DIR={str(data)!r}: expected a folder that can be written")
    assert str(data / place) in line
    assert "which belongs to root: give it to this user" in line


@as_root
def test_nobody_is_told_to_take_over_what_lies_above_the_data_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        line = told_to_nobody(Path(folder) / "no" / "home")
    assert f"as {folder} may not be written: set another D8_DATA_DIR" in line
    assert "chown" not in line


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder whose name is UTF-8") as caught:
        data_folder.require(tmp_path / "caf\udce9", "logs")
    assert "caf\\udce9" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(ConfigError, match="not writable"):
        data_folder.require(tmp_path, "logs")


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("name", ["members.json", "tokens.json"])
@pytest.mark.parametrize(("mode", "left"), [(0o644, 0o600), (0o664, 0o664), (0o602, 0o602)])
def test_what_says_who_may_come_in_is_not_closed_in_silence_if_others_could_write_it(
    tmp_path: Path, name: str, mode: int, left: int
) -> None:
    data_folder.require(tmp_path, "orchestrator")
    path = tmp_path / "orchestrator" / name
    path.write_text("", "utf-8")
    path.chmod(mode)
    data_folder.require(tmp_path, "orchestrator")
    assert path.stat().st_mode & 0o777 == left


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("place", ["curve.key", "payload.key", "tls/key.pem"])
def test_a_key_that_others_could_read_is_not_closed_in_silence(tmp_path: Path, place: str) -> None:
    data_folder.require(tmp_path, "orchestrator")
    key, other = tmp_path / "orchestrator" / place, tmp_path / "orchestrator" / "epoch"
    key.parent.mkdir(exist_ok=True)
    for path in (key, other):
        path.write_text("", "utf-8")
        path.chmod(0o644)
    data_folder.require(tmp_path, "orchestrator")
    assert [path.stat().st_mode & 0o777 for path in (key, other)] == [0o644, 0o600]
