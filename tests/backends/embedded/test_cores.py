"""Free cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from d8mesh.backends.embedded.cores import busy_cores, threads_for, threads_now, usable_cores

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("cores", "busy", "threads"),
    [
        (1, 0.0, 1), (1, 5.0, 1), (2, 0.0, 2), (2, 0.3, 2), (2, 0.9, 1), (2, 2.0, 1),
        (4, 1.0, 3), (0.5, 0.0, 1), (1.5, 0.2, 1), (64, 0.4, 64),
    ],
)  # fmt: skip
def test_threads_are_the_cores_that_nobody_uses(cores: float, busy: float, threads: int) -> None:
    assert threads_for(cores=cores, busy=busy) == threads


def test_this_machine_has_at_least_one_core_and_no_more_than_it_counts() -> None:
    assert 0 < usable_cores() <= (os.cpu_count() or 1)
    assert 1 <= threads_now() <= max(1, usable_cores())


@pytest.mark.skipif(sys.platform == "darwin", reason="the load average tells after a minute")
def test_a_core_that_another_program_uses_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until = time.monotonic() + PATIENCE_S
        while busy_cores() < 0.7:
            assert time.monotonic() < until
        if usable_cores() > 1:
            assert threads_now() < (os.cpu_count() or 1)
    finally:
        busy.kill()
        busy.wait()
