"""The checks are checked: every planted fault must be caught by the test that is named for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.plants import PLANTS

ROOT = Path(__file__).resolve().parents[2]
#: Interpreters that share the faults: a single one would be the last to end of all tests.
SHARES = 6
#: Half a minute each; beside other things on two slow cores some times that.
PATIENCE_S = 400


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 20)
@pytest.mark.parametrize("share", range(SHARES))
def test_every_planted_fault_is_caught_by_its_check(share: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted.run", str(share), str(SHARES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{len(PLANTS[share::SHARES])} caught" in done.stdout


def test_there_are_enough_and_each_has_a_name() -> None:
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 20
