"""Free cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from d8mesh.backends.embedded.cores import (
    allowed_cores,
    busy_cores,
    machine_cores,
    threads_for,
    threads_now,
)

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("cores", "allowed", "busy", "threads"),
    [
        (1, 1, 0.0, 1), (1, 1, 5.0, 1), (2, 2, 0.0, 2), (2, 2, 0.2, 2), (2, 2, 0.3, 1),
        (2, 2, 0.9, 1), (2, 2, 2.0, 1), (4, 4, 1.0, 3), (64, 64, 0.4, 63),
        (64, 2, 40.0, 2), (64, 0.5, 0.0, 1), (4, 1.5, 0.0, 1), (64, 30, 40.0, 24),
    ],
)  # fmt: skip
def test_threads_are_the_cores_that_nobody_uses_as_far_as_they_are_allowed(
    cores: int, allowed: float, busy: float, threads: int
) -> None:
    assert threads_for(cores=cores, allowed=allowed, busy=busy) == threads


def test_this_machine_has_at_least_one_core_and_no_more_than_it_counts() -> None:
    assert 1 <= machine_cores() <= (os.cpu_count() or 1)
    assert allowed_cores() > 0
    assert 1 <= threads_now() <= machine_cores()


@pytest.mark.skipif(sys.platform == "darwin", reason="the load average tells after a minute")
def test_a_core_that_another_program_uses_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until = time.monotonic() + PATIENCE_S
        while busy_cores() < 0.7:
            assert time.monotonic() < until
        if machine_cores() > 1:
            assert threads_now() < machine_cores()
    finally:
        busy.kill()
        busy.wait()
