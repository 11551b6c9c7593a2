"""Where a task came from: a line for people, whatever the caller says of itself."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.frames import MAX_SOURCE_CHARS
from d8mesh.core.protocol.source import TaskSource, source_of


@pytest.mark.parametrize(
    "source",
    [
        TaskSource("ollama", "127.0.0.1", "curl/8.5"),
        TaskSource("openai", "::1", "OpenAI/Python 1.2 (x; y)"),
        TaskSource("batches", "", "d8mesh"),
        TaskSource("openai", "10.0.0.1"),
    ],
)
def test_a_source_is_read_as_it_was_written(source: TaskSource) -> None:
    assert source_of(source.text()) == source


def test_a_source_is_one_short_line_of_printable_characters() -> None:
    text = TaskSource("ollama", "10.0.0.9", "evil\x1b[2J\n" + "x" * 1000).text()
    assert len(text) == MAX_SOURCE_CHARS
    assert text.isprintable()


def test_what_came_in_by_no_door_has_no_source() -> None:
    assert source_of("") == TaskSource("")


def test_people_are_told_address_and_program() -> None:
    assert TaskSource("ollama", "10.0.0.9", "curl/8.5").caller == "10.0.0.9 curl/8.5"
    assert TaskSource("ollama", "", "curl/8.5").caller == "curl/8.5"
