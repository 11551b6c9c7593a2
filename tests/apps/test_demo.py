"""The demo as people run it."""

from __future__ import annotations

import subprocess
import sys

PATIENCE_S = 110


def test_it_ends_by_itself_with_a_summary() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", "demo"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(done.stdout.split())
    assert "tasks completed, 0 failed" in told
    for part in ("REST: submit and poll: 20 done", "client: echo:", "client: mutations:"):
        assert part in told
