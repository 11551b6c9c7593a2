"""The address file: read as it was written, and nothing that is not sound."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge.address_file import FOLDER, MAX_ADDRESS_FILE_BYTES, NAME, read, remove, write

WRITTEN = KnownBroker(
    "orch-1", ("127.0.0.1", "10.1.2.3"), 7010, 7001, b"k" * 32, b"p" * 32, "f" * 64
)
#: The same as it stands in the file.
ROW = {
    **asdict(WRITTEN),
    "mesh": "m",
    "addresses": ["127.0.0.1", "10.1.2.3"],
    "server_key": "6b" * 32,
    "proof": "70" * 32,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / FOLDER
    folder.mkdir()
    return folder


def test_what_was_written_is_read_until_it_is_taken_back(folder: Path) -> None:
    assert read(folder.parent, "m") is None
    write(folder, WRITTEN, "m")
    assert json.loads((folder / NAME).read_bytes()) == ROW
    assert read(folder.parent, "m") == WRITTEN
    assert read(folder.parent, "other") is None
    write(folder, replace(WRITTEN, port=7011, web_port=None), "m")
    assert read(folder.parent, "m") == replace(WRITTEN, port=7011, web_port=None)
    remove(folder)
    remove(folder)
    assert read(folder.parent, "m") is None
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    write(tmp_path / "none", WRITTEN, "m")
    remove(tmp_path / "none")
    assert read(tmp_path / "none", "m") is None


@pytest.mark.parametrize(
    "change",
    [
        {"broker_id": "../x"},
        {"broker_id": 5},
        {"port": 0},
        {"port": "7010"},
        {"port": True},
        {"web_port": 65_536},
        {"addresses": None},
        {"mesh": ["m"]},
        {"more": "x" * MAX_ADDRESS_FILE_BYTES},
    ],
)
def test_what_is_not_sound_is_not_read(folder: Path, change: dict[str, Any]) -> None:
    (folder / NAME).write_text(json.dumps(ROW | change), "utf-8")
    assert read(folder.parent, "m") is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\xff", "[" * 5000])
def test_rubbish_is_not_read(folder: Path, text: str) -> None:
    (folder / NAME).write_text(text, "latin-1")
    assert read(folder.parent, "m") is None


def test_addresses_elsewhere_are_left_out(folder: Path) -> None:
    row = ROW | {"addresses": ["8.8.8.8", 5, "name", "10.0.0.7"]}
    (folder / NAME).write_text(json.dumps(row), "utf-8")
    found = read(folder.parent, "m")
    assert found is not None
    assert found.addresses == ("127.0.0.1", "10.0.0.7")
