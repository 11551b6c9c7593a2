"""How far a batch is, on a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from d8mesh.apps.batch_progress import BatchProgress, spoken


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_are_lines_now_and_then_and_the_last() -> None:
    out, clock = io.StringIO(), Clock()
    with BatchProgress(100, 20, console=Console(file=out, width=200), clock=clock) as progress:
        for _ in range(8):
            clock.now += 2.0
            progress.advance(10, 1, 300)
    lines = out.getvalue().splitlines()
    assert lines[0] == "50/100, 5/s, 150 tokens/s, 10 s left, 3 failed"
    assert lines[-1] == "100/100, 5/s, 150 tokens/s, 8 failed"
    assert len(lines) == 3


def test_what_failed_before_is_counted() -> None:
    assert BatchProgress(10, 5, 2, console=Console(file=io.StringIO())).note() == "2 failed"


def test_on_a_terminal_there_is_a_bar_with_the_same() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=120, force_terminal=True)
    with BatchProgress(10, 0, console=console, clock=clock) as progress:
        clock.now += 4.0
        progress.advance(8, 0, 80)
        progress.why("no worker")
    assert "8/10" in out.getvalue()
    assert "2/s, 20 tokens/s, 1 s left" in out.getvalue()
    assert "still waiting: no worker" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.6, "5 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_a_time_is_for_people(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
