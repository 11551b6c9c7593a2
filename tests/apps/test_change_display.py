"""How far changes are: bars, lines or JSON, and no harm to a terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from d8mesh import words
from d8mesh.apps.change_display import (
    ChangeBars,
    ChangeDisplay,
    ChangeLines,
    ChangesAsJson,
    display_for,
    step_text,
)

STEP = {"status": "pulling 6a0746a1ec1a", "completed": 500_000_000, "total": 2_000_000_000}


def play(display: ChangeDisplay) -> None:
    with display:
        display.begin("pi5", "t-1")
        display.begin("nas", "t-2")
        display.step("pi5", STEP)
        display.step("pi5", STEP)
        display.step("nas", {"status": "pulling manifest", "completed": 0, "total": 0})
        display.say("nas", "still waiting")
        display.say("", "cancelled")
        display.done("pi5", "m is installed")
        display.failed("nas", "no \x1b[31mroom", "task.failed")


def test_plain_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    play(ChangeLines())
    said = capsys.readouterr()
    assert said.out == "pi5: m is installed\n"
    assert said.err.splitlines() == [
        "pi5: task t-1 submitted",
        "nas: task t-2 submitted",
        "pi5: pulling 6a0746a1ec1a, 500 MB of 2.0 GB (25 %)",
        "nas: pulling manifest",
        "nas: still waiting",
        "cancelled",
        "error: nas: no \\x1b[31mroom",
    ]


def test_json_has_every_step_and_words_stand_apart(capsys: pytest.CaptureFixture[str]) -> None:
    play(ChangesAsJson("m"))
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    assert [(each["machine"], each["state"]) for each in told] == [
        ("pi5", "submitted"),
        ("nas", "submitted"),
        ("pi5", "running"),
        ("pi5", "running"),
        ("nas", "running"),
        ("pi5", "completed"),
        ("nas", "failed"),
    ]
    assert told[2] == {"machine": "pi5", "model": "m", "task_id": "t-1", "state": "running"} | STEP
    assert told[-1]["error"] == "no \x1b[31mroom"
    assert said.err == "nas: still waiting\ncancelled\n"


def test_bars_show_each_machine_and_the_end_stays(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    play(ChangeBars(Console(file=screen, force_terminal=True, width=110)))
    shown = screen.getvalue()
    assert "2.0/2.0 GB" in shown
    assert "m is installed" in shown
    assert "error: nas: no \\x1b[31mroom" in shown
    assert capsys.readouterr().out == "pi5: m is installed\n"


def test_who_reads_decides_what_is_shown() -> None:
    assert isinstance(display_for("m", is_json=True), ChangesAsJson)
    assert isinstance(display_for("m", is_json=False), ChangeLines)


def test_a_step_is_told_in_spanish() -> None:
    words.use("es")
    try:
        told = step_text(STEP)
    finally:
        words.use("en")
    assert step_text({**STEP, "completed": 0}).endswith(", 0 of 2.0 GB (0 %)")
    assert told == "descargando 6a0746a1ec1a, 500 MB de 2.0 GB (25 %)"
