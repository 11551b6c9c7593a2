"""Handlers in processes: frames both ways, and an end that comes."""

from __future__ import annotations

import io

from d8mesh.edge.child import LENGTH, Child, packed, unpacked

PATIENCE_S = 60.0


def test_frames_are_read_back_until_the_stream_ends() -> None:
    stream = io.BytesIO(packed([1, "a"]) + packed([]) + b"\0\0")
    assert unpacked(stream) == [1, "a"]
    assert unpacked(stream) == []
    assert unpacked(stream) is None


def test_what_is_no_frame_ends_the_conversation() -> None:
    for garbage in (LENGTH.pack(2**32 - 1), LENGTH.pack(1) + b"\xc1", LENGTH.pack(5) + b"x"):
        assert unpacked(io.BytesIO(garbage)) is None


def test_a_child_that_is_killed_is_gone_and_says_so() -> None:
    child = Child("tests.nodes.process_handlers:no_such_function")
    child.kill()
    assert child.exit_code is not None
    while (said := child.said.get(timeout=PATIENCE_S)) is not None:
        assert isinstance(said, list)
    assert child.tell([1]) is False


def test_a_child_ends_when_it_is_closed() -> None:
    child = Child("tests.nodes.process_handlers:no_such_function")
    child.close()
    assert child.exit_code is not None
