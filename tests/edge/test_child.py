"""Handlers in processes: frames both ways, and an end that comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import pytest

from d8mesh.edge.child import Child
from d8mesh.edge.child.frames import LENGTH, Unpacker, packed
from d8mesh.edge.child.parent import Parent
from d8mesh.edge.child.program import Program
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


def is_there(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits to be noticed does not."""
    if sys.platform != "linux":
        return False
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False


def test_a_program_of_others_ends_with_what_it_has_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import os, subprocess, sys, time\n"
        "inner = 'import time; print(\"inner\", flush=True); time.sleep(600)'\n"
        "its = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "its.stdout.readline()\n"
        "print('said', os.environ['SAID'], its.pid, flush=True); time.sleep(600)"
    )
    program = Program([sys.executable, "-c", code], env={"SAID": "so"}, log=log)
    until = time.monotonic() + PATIENCE_S
    while not program.last_line().startswith("said so "):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert program.is_running
    program.close()
    assert (program.is_running, program.exit_code is None) == (False, False)
    inner = int(program.last_line().split()[-1])
    while is_there(inner):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_program_that_ends_by_itself_has_its_code_and_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('first'); print('no disk'); sys.exit(3)"
    program = Program([sys.executable, "-c", code], env={}, log=tmp_path / "log")
    until = time.monotonic() + PATIENCE_S
    while program.is_running:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (program.exit_code, program.last_line()) == (3, "no disk")
    program.close()
    (tmp_path / "log").unlink()
    assert program.last_line() == ""
