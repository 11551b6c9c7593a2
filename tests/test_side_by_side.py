"""A run of everything is shared and leaves the long proofs out; what is named is run as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 110
SETTINGS = """
[pytest]
testpaths = proofs
markers = slow: a long proof
"""
CONFTEST = (
    "from tests.side_by_side import pytest_addoption, pytest_cmdline_main, "
    "pytest_collection_modifyitems, pytest_terminal_summary, pytest_testnodedown\n"
)
TESTS = """
import pytest

def test_short(): pass

@pytest.mark.slow
def test_long(): pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(SETTINGS, "utf-8")
    (tmp_path / "proofs").mkdir()
    (tmp_path / "proofs" / "conftest.py").write_text(CONFTEST, "utf-8")
    (tmp_path / "proofs" / "test_both.py").write_text(TESTS, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "ran", "is_shared"),
    [
        (["--maxprocesses=1"], 1, True),
        (["--maxprocesses=1", "--all"], 2, True),
        (["-s"], 1, False),
        (["-p", "no:xdist"], 1, False),
        (["proofs/test_both.py"], 2, False),
    ],
)
def test_what_is_run_and_by_how_many_follows_from_what_is_named(
    project: Path, arguments: list[str], ran: int, is_shared: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--import-mode=importlib", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ran} passed" in done.stdout.splitlines()[-1]
    assert ("[gw0]" in done.stdout) is is_shared
    assert ("1 long proofs left out: test --all" in done.stdout) is (ran == 1)
