"""Exceptions of any kind in bounded words, for people and terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.core.protocol.chat import ChatRequest
from d8mesh.handlers.tracebacks import (
    MAX_ERROR_CHARS,
    MAX_ROW_CHARS,
    MAX_TRACEBACK_CHARS,
    bounded,
    error_text,
    is_all_ours,
    stack_text,
    traceback_text,
)
from tests.ollama_standin import OllamaStandin


def raised(handler: Callable[[], Any]) -> BaseException:
    try:
        handler()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def chained() -> None:
    try:
        raise KeyError("inner")
    except KeyError as cause:
        error = ValueError("outer")
        error.add_note("look at the size")
        raise error from cause


def grouped() -> None:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("deep", [KeyError("two")])])


def recursive() -> None:
    recursive()


class Hostile(BaseException):
    """Raises when it is looked at."""

    def __str__(self) -> str:
        raise SystemExit(3)

    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


def hostile() -> None:
    raise Hostile


def test_causes_and_notes_are_in_the_traceback() -> None:
    text = traceback_text(raised(chained))
    for part in ("KeyError: 'inner'", "direct cause", "ValueError: outer", "look at the size"):
        assert part in text
    assert error_text(raised(chained)) == "ValueError: outer"


def test_the_errors_of_a_group_are_named_in_both() -> None:
    error = raised(grouped)
    assert error_text(error) == (
        "ExceptionGroup: several (2 sub-exceptions): [ValueError: one; "
        "ExceptionGroup: deep (1 sub-exception): [KeyError: 'two']]"
    )
    assert "ValueError: one" in traceback_text(error)
    assert "KeyError: 'two'" in traceback_text(error)


def test_of_a_large_group_a_few_are_named() -> None:
    text = error_text(ExceptionGroup("many", [ValueError(n) for n in range(1000)]))
    assert "ValueError: 9; …]" in text
    nested: ExceptionGroup[Exception] = ExceptionGroup("bottom", [ValueError("x" * 9999)])
    for _ in range(100):
        nested = ExceptionGroup("level", [nested] * 10)
    assert len(error_text(nested)) <= MAX_ERROR_CHARS


@pytest.mark.parametrize("handler", [chained, grouped, recursive, hostile])
def test_a_traceback_is_bounded_and_printable_line_by_line(handler: Callable[[], None]) -> None:
    text = traceback_text(raised(handler))
    assert 0 < len(text) <= MAX_TRACEBACK_CHARS
    assert all(row.isprintable() for row in text.split("\n"))


def test_what_raises_when_it_is_looked_at_is_named_all_the_same() -> None:
    assert error_text(raised(hostile)) == "Hostile"
    assert traceback_text(raised(hostile)).startswith("Hostile")


def test_control_characters_are_escaped_and_a_huge_message_leaves_the_frames() -> None:
    def clear_screen() -> None:
        raise ValueError("\x1b[2J" + "x" * 50_000_000)

    text = traceback_text(raised(clear_screen))
    assert "in clear_screen" in text
    assert "ValueError: \\x1b[2Jxxx" in text
    assert max(len(row) for row in text.split("\n")) <= MAX_ROW_CHARS


def test_of_a_long_text_the_end_is_kept() -> None:
    text = bounded("\n".join(["first", *["x" * 70] * 1000, "last"]))
    assert len(text) == MAX_TRACEBACK_CHARS
    assert text.startswith("first\n")
    assert text.endswith("\nlast")
    assert "left out" in text
    assert bounded(text) == text


def test_where_a_thread_is_begins_with_its_own_frame() -> None:
    text = stack_text(sys._getframe())
    assert text.startswith("It is at")
    assert "test_where_a_thread_is" in text


def test_an_error_that_comes_through_a_with_of_ours_is_ours() -> None:
    """The frames of `contextlib` stand between ours: that is no handler of somebody else."""
    request = ChatRequest(messages=({"role": "user", "content": "x"},), options={"top_k": "x"})
    run = ChatRun(is_cancelled=lambda: False, deadline_s=20.0)
    with OllamaStandin() as standin:
        error = raised(lambda: OllamaBackend(standin.url).chat(request, run))
    assert "must be of type integer" in str(error)
    assert not is_all_ours(error)  # it came through this test
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    assert trace is not None
    assert is_all_ours(error.with_traceback(trace))
