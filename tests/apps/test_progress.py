"""A bar on a terminal, plain lines elsewhere, and no tricks from what is shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from d8mesh.apps.progress import PROGRESS_LINE_CHARS, Progress, one_line


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    with Progress("Work", 3, console=Console(file=out, force_terminal=False)) as progress:
        for i in range(3):
            progress.advance(f"step [bold]{i}")
        progress.say("[red]done\x1b[31m")
    lines = out.getvalue().splitlines()
    assert lines[0] == "Work: 1/3 step [bold]0"
    assert lines[-2:] == ["Work: 3/3 step [bold]2", "[red]done [31m"]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Progress("Work", 2, console=console) as progress:
        progress.advance("a [b]note")
        progress.advance()
        progress.say("a line")
    assert "2/2" in out.getvalue()
    assert "a line" in out.getvalue()


def test_a_long_step_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with Progress("Work", 2, console=Console(file=out, force_terminal=False)) as progress:
        progress.note("1 of 9")
        assert out.getvalue() == ""
        monkeypatch.setattr("d8mesh.apps.progress.NOTE_S", 0.0)
        progress.note("2 of 9")
    assert out.getvalue() == "Work: 2 of 9\n"
    console = Console(file=out, force_terminal=True, width=100)
    with Progress("Work", 2, console=console) as progress:
        progress.note("3 of [b]9")
    assert "3 of [b]9" in out.getvalue()


def test_a_run_without_steps_is_shown_too() -> None:
    out = io.StringIO()
    with Progress("Work", 0, console=Console(file=out)):
        pass
    assert out.getvalue() == ""


def test_a_line_is_one_bounded_line() -> None:
    assert one_line("a\r\n\tb\x1b]0;title\x07 c") == "a b ]0;title c"
    assert len(one_line("x" * 1_000_000)) == PROGRESS_LINE_CHARS
