"""What room this machine has for models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from d8mesh.edge.room import disk_free_bytes, memory_bytes, models_folder


def test_this_machine_tells_its_memory() -> None:
    found = memory_bytes()
    assert found is not None
    assert found > 100_000_000


def test_ollamas_folder_is_the_one_set_else_the_first_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    system = tmp_path / "system"
    own = tmp_path / ".ollama" / "models"
    assert models_folder({"OLLAMA_MODELS": "/models"}) == Path("/models")
    assert models_folder({}, system=[str(system)]) == own
    system.mkdir()
    assert models_folder({}, system=[str(system)]) == system
    own.mkdir(parents=True)
    assert models_folder({}, system=[str(system)]) == own


def test_the_disk_of_a_folder_that_is_not_there_yet_is_known(tmp_path: Path) -> None:
    free = disk_free_bytes(tmp_path / "not" / "there")
    assert free is not None
    assert free > 0


@pytest.mark.skipif(os.name == "nt", reason="containers of Windows have no such file")
@pytest.mark.parametrize("text", ["1000000\n", "max\n", "9223372036854771712\n"])
def test_a_container_has_no_more_memory_than_it_may(text: str, tmp_path: Path) -> None:
    machine = memory_bytes(bounds=())
    assert machine is not None
    (tmp_path / "memory.max").write_text(text, "ascii")
    told = memory_bytes(bounds=[tmp_path / "none", tmp_path / "memory.max"])
    assert told == (1_000_000 if text.startswith("1") else machine)
