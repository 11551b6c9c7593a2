"""Output that is kept until it is read: within bounds, and what is missing is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Group, Refused, Stream
from d8mesh.nodes.client import stream_buffer as module
from d8mesh.nodes.client.stream_buffer import KeptOutput, StreamBuffer
from d8mesh.nodes.client.streams import RESTARTED, Listeners, Missed, Position

SESSION = "0123456789abcdef"


def stream(seq: int, *texts: str, attempt: int = 1, n: int = 0) -> Stream:
    return Stream(f"{SESSION}-{n}", attempt, seq, [msgspec.msgpack.encode(text) for text in texts])


def kept_of(buffer: StreamBuffer, n: int = 0) -> list[Any]:
    kept, told = buffer.of(f"{SESSION}-{n}"), list[Any]()
    assert kept is not None
    position = Position(is_whole=True)
    _, heard, _ = kept.read(0, 0.0)
    for each in heard:
        told += position.read(each)
    return told


def new(count: int = 1) -> tuple[StreamBuffer, Listeners, Submission]:
    listeners = Listeners()
    buffer = StreamBuffer(listeners)
    submission = Submission(SESSION, 0, [Group("echo", 5, [b"\x80"] * count)], is_listened=True)
    for index in range(count):
        buffer.expect(submission, index)
    return buffer, listeners, submission


def listener(listeners: Listeners, n: int = 0) -> Callable[[Stream | None], None]:
    (hear,) = listeners._of[f"{SESSION}-{n}"]
    return hear


def test_all_is_there_for_any_number_of_readers_once_each() -> None:
    buffer, listeners, _ = new()
    hear = listener(listeners)
    for part in (stream(0, "a"), stream(1, "b", "c"), stream(0, "a", "b", "c"), stream(3, "d")):
        hear(part)
    for _ in range(2):
        assert kept_of(buffer) == ["a", "b", "c", "d"]
    hear(stream(0, "x", attempt=2))
    hear(None)
    assert kept_of(buffer)[4:] == [RESTARTED, "x"]
    kept = buffer.of(f"{SESSION}-0")
    assert kept is not None
    assert kept.read(99, 0.0) == (4, [], True)


def test_what_is_missing_is_said_at_its_place() -> None:
    _, _, _ = new()
    whole, late = Position(is_whole=True), Position(is_whole=False)
    assert list(whole.read(stream(2, "c"))) == [Missed(2), "c"]
    assert list(late.read(stream(2, "c"))) == ["c"]
    for position in (whole, late):
        assert list(position.read(stream(7, "h"))) == [Missed(4), "h"]
        assert list(position.read(stream(0, attempt=2))) == [RESTARTED]
        assert list(position.read(stream(1, "b", attempt=2))) == [Missed(1), "b"]


def test_beyond_the_bound_of_a_task_the_oldest_goes_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_TASK_BYTES", 3 * module.PIECE_BYTES)
    buffer, listeners, _ = new()
    for seq in range(9):
        listener(listeners)(stream(seq, str(seq)))
    assert kept_of(buffer) == [Missed(7), "7", "8"]


def test_one_live_reader_may_be_far_behind_and_what_he_has_read_takes_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_TASK_BYTES", 3 * module.PIECE_BYTES)
    kept = KeptOutput(has_one_reader=True)
    for seq in range(9):
        kept.hear(stream(seq, str(seq)))
    part = kept.read(0, 0.0)
    assert [each.first_seq for each in part.streams] == list(range(9))
    assert kept.size_bytes == 0
    kept.hear(stream(9, "9"))
    kept.hear(None)
    last = kept.read(part.at, 0.0)
    assert ([each.first_seq for each in last.streams], last.is_over) == ([9], True)


def test_beyond_the_bounds_of_all_what_has_ended_first_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ALL_BYTES", 3 * module.PIECE_BYTES + 10)
    buffer, listeners, _ = new(4)
    hears = [listener(listeners, n) for n in range(4)]
    for n in (1, 0, 2):
        hears[n](stream(0, str(n), n=n))
    hears[2](None)
    hears[3](stream(0, "3", n=3))
    assert [n for n in range(4) if buffer.of(f"{SESSION}-{n}")] == [0, 1, 3]
    hears[1](stream(1, "more", n=1))
    assert [n for n in range(4) if buffer.of(f"{SESSION}-{n}")] == [1, 3]
    hears[0](stream(1, "late"))
    monkeypatch.setattr(module, "MAX_KEPT_TASKS", 1)
    assert [n for n in range(4) if buffer.of(f"{SESSION}-{n}")] == [3]


def test_what_has_ended_is_kept_for_so_long() -> None:
    buffer, listeners, _ = new()
    listener(listeners)(None)
    assert buffer.keep_s == math.inf
    assert buffer.of(f"{SESSION}-0") is not None
    buffer.keep_s = 0.0
    assert buffer.of(f"{SESSION}-0") is None


def test_what_is_refused_is_not_kept_and_a_repeated_key_keeps_the_first_tasks() -> None:
    buffer, listeners, submission = new()
    submission.accept(SESSION, 0, is_repeat=False)
    buffer.settled(submission)
    assert buffer.of(f"{SESSION}-0") is not None
    submission.accept("v" * 16, 5, is_repeat=True)
    for _ in range(2):
        buffer.settled(submission)
        assert buffer.of(f"{SESSION}-0") is None
        assert list(listeners.tasks) == ["v" * 16 + "-5"]
    buffer, listeners, submission = new()
    submission.refuse(Refused(1, "task.invalid", "no"))
    buffer.settled(submission)
    assert (buffer.of(f"{SESSION}-0"), listeners.tasks) == (None, frozenset())
