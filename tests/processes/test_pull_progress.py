"""How far a pull is: a bar where there is a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from d8mesh.backends.backend import PullProgress
from d8mesh.processes.pull_progress import LINE_APART_S, PullBar, PullLines, pull_view


def test_lines_come_seldom_and_only_once_the_size_is_known() -> None:
    lines: list[str] = []
    now = [0.0]
    view = PullLines("m:1b", lines.append, clock=lambda: now[0])
    for done in range(0, 1001, 100):
        now[0] += LINE_APART_S / 4
        view.show(PullProgress("pulling", done * 10**6, 10**9 if done else 0))
    view.close()
    assert lines == ["pulling m:1b: 0.3 GB of 1.0 GB", "pulling m:1b: 0.7 GB of 1.0 GB"]


def test_a_terminal_gets_a_bar_that_fits_and_is_taken_away() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    view = pull_view("llama3.2:1b", tell=lambda text: None, console=console)
    assert isinstance(view, PullBar)
    view.show(PullProgress("pulling manifest"))
    view.show(PullProgress("pulling abc", 5 * 10**8, 13 * 10**8))
    view.close()
    shown = screen.getvalue()
    assert "llama3.2:1b" in shown
    assert "0.5/1.3 GB" in shown


def test_what_is_no_terminal_gets_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(pull_view("m", tell=lambda text: None, console=console), PullLines)
