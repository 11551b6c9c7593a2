"""Failures on a worker's console: in order, and no handler waits for the terminal."""

from __future__ import annotations

import threading

from d8mesh.web.failure_console import MAX_WAITING, FailureConsole

PATIENCE_S = 30.0


def test_what_is_shown_is_printed_in_order_before_it_closes() -> None:
    said: list[str] = []
    console = FailureConsole(said.append)
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

    console = FailureConsole(say)
    console.show("first")
    assert is_stopped.wait(PATIENCE_S)
    for n in range(10 * MAX_WAITING):
        console.show(str(n))
    goes_on.set()
    console.close()
    assert said == ["first", *map(str, range(9 * MAX_WAITING, 10 * MAX_WAITING))]
