"""What a worker says of failed attempts: one block each, and of a flood how large it was."""

from __future__ import annotations

import logging

import msgspec
import pytest

from d8mesh.core.worker.effects import Attempt
from d8mesh.nodes.worker.failures import (
    COUNTED_TOGETHER_S,
    FIRST_IN_ALL,
    MAX_ROWS,
    MAX_TITLE_CHARS,
    SHOWN_PER_TYPE,
    FailedAttempt,
    Failures,
)


class Scene:
    """Failures with a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[str] = []
        self.failures = Failures(lambda: self.now)
        self.failures.on_told = self.told.append
        self.count = 0

    def fail(self, kind: str = "resize", **result: object) -> None:
        self.count += 1
        attempt = Attempt("link", kind, 60.0, False, f"id-{self.count}", bytes(16), b"")
        body = {"success": False, "error": "ValueError: bad", **result}
        payload = msgspec.msgpack.encode(body)
        self.failures.note(attempt, number=2, slot="slot-0", payload=payload)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_failure_is_a_line_that_names_it_and_its_traceback_indented(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.fail(traceback="Traceback (most recent call last):\nValueError: bad")
    assert scene.told[0].split("\n") == [
        "task id-1 (resize, attempt 2) failed: ValueError: bad",
        "    Traceback (most recent call last):",
        "    ValueError: bad",
    ]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        'task.failed task=id-1 type=resize attempt=2 slot=slot-0 error="ValueError: bad"'
    )
    assert record.exc_text == "Traceback (most recent call last):\nValueError: bad"


def test_a_flood_is_told_a_few_times_and_then_counted(scene: Scene) -> None:
    for _ in range(SHOWN_PER_TYPE + 312):
        scene.fail()
    assert len(scene.told) == SHOWN_PER_TYPE
    scene.failures.flush()
    assert len(scene.told) == SHOWN_PER_TYPE
    scene.now += COUNTED_TOGETHER_S
    scene.failures.flush()
    assert scene.told[SHOWN_PER_TYPE:] == ["… and 312 more failures of resize"]
    scene.fail()
    assert len(scene.told) == SHOWN_PER_TYPE + 2


def test_the_first_of_another_type_is_told_in_a_flood_but_not_of_thousands(scene: Scene) -> None:
    for kind in "abcdef":
        for _ in range(100):
            scene.fail(kind)
    assert any("(f, attempt" in text for text in scene.told)
    for n in range(1000):
        scene.fail(f"type-{n}")
    assert len(scene.told) == FIRST_IN_ALL
    scene.failures.flush(is_last=True)
    assert "more failures of other types" in scene.told[-1]
    assert len(scene.told) < 3 * FIRST_IN_ALL


def test_nothing_in_a_block_drives_a_terminal_and_it_is_bounded(scene: Scene) -> None:
    scene.fail("\x1b[2J", error="\x1b]0;title\x07\n" + "x" * 99_999, traceback="\x1b[31m\n" * 9_999)
    rows = scene.told[0].split("\n")
    assert all(row.isprintable() for row in rows)
    assert len(rows) <= 1 + MAX_ROWS
    assert len(rows[0]) < MAX_TITLE_CHARS + 200


def test_of_a_long_traceback_both_ends_are_shown() -> None:
    traceback = "\n".join(["first", *["…"] * 200, "last"])
    rows = FailedAttempt("id", "t", 1, "slot-0", "e", traceback).as_block().split("\n")
    assert (rows[1], rows[-1], len(rows)) == ("    first", "    last", 1 + MAX_ROWS)
    assert any("173 lines" in row for row in rows)


@pytest.mark.parametrize("payload", [b"\xc1", b"\x93\x01\x02\x03", b"\x80"])
def test_a_result_that_says_nothing_is_told_all_the_same(scene: Scene, payload: bytes) -> None:
    attempt = Attempt("link", "t", 60.0, False, "id", bytes(16), b"")
    scene.failures.note(attempt, number=1, slot="slot-0", payload=payload)
    assert scene.told[0].startswith("task id (t, attempt 1) failed")
