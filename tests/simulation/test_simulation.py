"""Seeded histories of the real brains; a failing seed prints itself and the task's story."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.world import World

SEEDS = 300
AT_A_TIME = 20


@pytest.mark.parametrize("start", range(0, SEEDS, AT_A_TIME))
def test_no_history_breaks_a_promise(tmp_path: Path, start: int) -> None:
    for seed in range(start, start + AT_A_TIME):
        folder = tmp_path / str(seed)
        folder.mkdir()
        counts = World(seed, folder).run()
        assert counts.tasks > 0
