"""Child commands: started with settings, listened to, ended with us."""

from __future__ import annotations

import subprocess
import sys

import pytest

from d8mesh.apps.children import Children, RunningCommand
from tests.end_to_end.processes import until

PATIENCE_S = 60.0


def test_a_child_gets_settings_and_what_it_says_is_kept() -> None:
    heard: list[str] = []
    with Children({"FLASK_PORT": "nonsense"}) as children:
        child = children.start("status", "status", on_line=heard.append)
        assert child.wait(PATIENCE_S) == 2
        assert child.is_up.is_set()
        assert not child.is_running
    assert "FLASK_PORT='nonsense'" in heard[0]
    assert list(child.lines) == heard


def test_a_secret_is_not_in_a_childs_command_line() -> None:
    key = "not 16 printable"
    with Children({"D8_MESH_KEY": key, "FLASK_PORT": "7001"}) as children:
        child = children.start("status", "status")
        assert not any(key in each for each in map(str, child.process.args))  # type: ignore[arg-type]
        assert child.wait(PATIENCE_S) == 2
    assert "D8_MESH_KEY=(hidden)" in child.lines[0]


def test_all_children_are_ended_in_the_end() -> None:
    with Children({}) as children:
        child = children.start("worker", "worker", settings={"WORKER_ID": "child"})
        until(child.is_up.is_set, "the worker's first line")
        assert child.is_running
    assert child.process.returncode == 0


def test_a_child_that_does_not_end_is_killed() -> None:
    with Children({}) as children:
        child = children.start("worker", "worker")
        until(child.is_up.is_set, "the worker's first line")
        assert child.wait(0.01) != 0


def test_an_error_inside_ends_the_children_too() -> None:
    started = []

    def fail() -> None:
        with Children({}) as children:
            started.append(children.start("worker", "worker"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not started[0].is_running


def test_a_child_that_leaves_one_of_its_own_behind_has_ended_all_the_same() -> None:
    left = "import sys; print('left', flush=True); sys.stdin.read()"
    code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {left!r}]); sys.exit(3)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = RunningCommand("child", process, None)
    assert child.wait(PATIENCE_S) == 3
    until(lambda: child.lines, "the line of the one that is left")
    child.close_input()
    child._pump.join(PATIENCE_S)
    assert process.stdout is not None
    assert process.stdout.closed
