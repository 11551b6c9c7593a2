"""No process listens on a public address by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = "8.8.8.8"
KEY = "the-key-of-this-mesh-4711"


def ended(folder: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Run a command with a public FLASK_HOST; return its exit code and what it said."""
    given = {"D8_DATA_DIR": str(folder), "FLASK_HOST": PUBLIC, **settings}
    argv = [sys.executable, "-m", "d8mesh", *arguments]
    environment = {**os.environ, **given}
    reads, writes = os.pipe()  # a child of ours ends with its standard input
    try:
        done = subprocess.run(
            argv, env=environment, stdin=reads, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    finally:
        os.close(reads)
        os.close(writes)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [["orchestrator"], ["worker"], ["_broker"], ["_web", "--broker", "tcp://127.0.0.1:1"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"D8_MESH_KEY": KEY}, {"D8_ALLOW_PUBLIC": "1"},
     {"D8_JOIN": "approve", "D8_ALLOW_PUBLIC": "1"}],
    ids=lambda settings: "+".join(settings) or "nothing",
)  # fmt: skip
def test_a_public_address_is_refused_at_the_start(
    tmp_path: Path, command: list[str], settings: dict[str, str]
) -> None:
    code, said = ended(tmp_path, *command, **settings)
    assert code == 2
    assert f"FLASK_HOST='{PUBLIC}' is a public address" in said
    assert "D8_MESH_KEY and D8_ALLOW_PUBLIC=1" in said
    assert KEY not in said


def test_with_a_key_and_the_wish_it_is_tried(tmp_path: Path) -> None:
    code, said = ended(tmp_path, "orchestrator", D8_MESH_KEY=KEY, D8_ALLOW_PUBLIC="1")
    assert code in (1, 2)  # it is no address of this machine
    assert "is a public address" not in said
    assert "expected an address of this machine" in said
