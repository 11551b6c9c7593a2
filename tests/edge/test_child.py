"""Handlers in processes: frames both ways, and an end that comes."""

from __future__ import annotations

import time

import msgspec
import pytest

from d8mesh.edge.child import Child
from d8mesh.edge.child.frames import LENGTH, Unpacker, packed
from d8mesh.edge.child.parent import Parent
from d8mesh.errors import HandlerError

PATIENCE_S = 60.0


def test_frames_are_made_of_bytes_however_they_come() -> None:
    unpacker = Unpacker()
    sent = packed([1, "a"]) + packed([]) + packed(["x" * 1000])
    frames = [frame for n in range(len(sent)) for frame in unpacker.feed(sent[n : n + 1])]
    assert frames == Unpacker().feed(sent) == [[1, "a"], [], ["x" * 1000]]


def test_what_is_no_frame_is_told_from_one() -> None:
    for garbage in (LENGTH.pack(2**32 - 1), LENGTH.pack(1) + b"\xc1", packed([])[:-1] + b"\x80"):
        with pytest.raises((ValueError, msgspec.DecodeError)):
            Unpacker().feed(garbage)


@pytest.mark.parametrize("pipes", [[], ["1"], ["x", "y"], ["99999", "99998"]])
def test_without_pipes_there_is_no_parent(pipes: list[str]) -> None:
    with pytest.raises(HandlerError, match="started by a worker"):
        Parent(pipes)


def test_a_child_that_is_killed_is_gone_and_says_so() -> None:
    child = Child("tests.nodes.process_handlers:no_such_function")
    child.kill()
    assert child.exit_code is not None
    while (said := child.said.get(timeout=PATIENCE_S)) is not None:
        assert isinstance(said, list)
    assert child.tell([1]) is False


def test_a_large_frame_for_a_child_that_does_not_read_holds_nobody_up() -> None:
    child = Child("tests.nodes.process_handlers:pid")
    began = time.monotonic()
    assert child.tell([b"x" * 30_000_000]) is True
    child.kill()
    assert time.monotonic() - began < PATIENCE_S
    assert child.exit_code is not None


def test_a_child_that_cannot_load_its_handler_says_so_and_ends() -> None:
    child = Child("tests.nodes.process_handlers:no_such_function")
    said = child.said.get(timeout=PATIENCE_S)
    assert said is not None
    assert said[0] == "broken"
    assert "no_such_function" in said[1]
    assert child.said.get(timeout=PATIENCE_S) is None
    assert child.ending == "exit code 1"


def test_a_child_ends_when_it_is_closed() -> None:
    child = Child("tests.nodes.process_handlers:no_such_function")
    child.close()
    assert child.exit_code is not None
