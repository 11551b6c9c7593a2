"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from d8mesh.backends.embedded import memory
from d8mesh.backends.embedded.memory import machine_bytes


def test_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_BOUNDS", ())
    assert machine_bytes() == pytest.approx(psutil.virtual_memory().total, rel=0.02)


@pytest.mark.parametrize(("bound", "bytes_there"), [("1000000", 1_000_000), ("max", None)])
def test_it_is_no_more_than_a_container_may_have(
    bound: str, bytes_there: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_BOUNDS", ())
    without = machine_bytes()
    (tmp_path / "memory.max").write_text(bound + "\n")
    monkeypatch.setattr(memory, "_BOUNDS", (tmp_path / "memory.max", tmp_path / "none"))
    assert machine_bytes() == (bytes_there or without)
