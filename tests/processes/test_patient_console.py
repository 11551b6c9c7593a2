"""Texts on a worker's console: in order, and nobody waits for the terminal."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from d8mesh.processes.patient_console import MAX_WAITING_TEXTS, PatientConsole

PATIENCE_S = 30.0


def test_what_is_shown_is_printed_in_order_before_it_closes() -> None:
    said: list[str] = []
    console = PatientConsole(said.append)
    for n in range(5):
        console.show(str(n))
    console.close()
    assert said == ["0", "1", "2", "3", "4"]


def test_a_terminal_that_is_stopped_holds_nobody_up() -> None:
    said: list[str] = []
    is_stopped, goes_on = threading.Event(), threading.Event()

    def say(text: str) -> None:
        is_stopped.set()
        assert goes_on.wait(PATIENCE_S)
        said.append(text)

    console = PatientConsole(say)
    console.show("first")
    assert is_stopped.wait(PATIENCE_S)
    for n in range(10 * MAX_WAITING_TEXTS):
        console.show(str(n))
    goes_on.set()
    console.close()
    assert said == ["first", *map(str, range(9 * MAX_WAITING_TEXTS, 10 * MAX_WAITING_TEXTS))]


def test_a_console_that_cannot_be_written_is_written_again_when_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Moody(io.TextIOWrapper):
        errors_left = 2

        def write(self, text: str) -> int:
            if self.errors_left:
                self.errors_left -= 1
                raise (OSError, ValueError)[self.errors_left]("full, or closed")
            return super().write(text)

    pipe = Moody(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", pipe)
    console = PatientConsole()
    for text in ("closed", "full", "… and 3 more failures"):
        console.show(text)
    console.close()
    pipe.flush()
    assert pipe.buffer.getvalue() == b"\\u2026 and 3 more failures\n"  # type: ignore[attr-defined]
