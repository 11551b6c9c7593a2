"""Results land in a folder of their own, and a file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.apps.results import new_folder, result_folder, write_whole
from d8mesh.errors import D8Error


def test_each_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {new_folder(tmp_path / "deep" / "niche") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() for folder in folders)


def test_a_given_folder_is_made_or_taken_as_it_is(tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "a" / "b", tmp_path)
    (folder / "kept").touch()
    assert (result_folder(folder, tmp_path) / "kept").exists()


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.txt", "one")
    write_whole(tmp_path / "x.txt", "two ñ\n")
    assert (tmp_path / "x.txt").read_bytes() == "two ñ\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_what_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(D8Error, match="choose another --output"):
        result_folder(tmp_path / "taken", tmp_path)
    with pytest.raises(D8Error, match="choose another --output"):
        new_folder(tmp_path / "taken" / "niche")
    (tmp_path / "folder").mkdir()
    with pytest.raises(D8Error, match="choose another --output"):
        write_whole(tmp_path / "folder", "x")
    assert {file.name for file in tmp_path.iterdir()} == {"taken", "folder"}
