"""A reader that has gone is no error, whatever is still to be written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from d8mesh.edge.terminal import as_json, is_reader_gone, say, tell, visible, width

PATIENCE_S = 60


def test_a_broken_pipe_is_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert is_reader_gone(BrokenPipeError())
    assert not is_reader_gone(OSError(errno.EINVAL, "?"))
    assert not is_reader_gone(OSError(errno.ENOSPC, "?"))
    monkeypatch.setattr(sys, "platform", "win32")
    assert is_reader_gone(OSError(errno.EINVAL, "what Windows says"))


def test_what_is_said_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr().out == "hello\n"


EVIL = "a\x1b[31m\x9b2J\r\x7f\u202eb\u2028c\ud83d"


def test_what_is_printed_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{EVIL}\n\tnext")
    tell(EVIL)
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert first.isprintable()
    assert second == "\tnext"
    assert told.err.rstrip("\n").isprintable()
    assert visible("niño\u00a0👩‍🔬") == "niño\u00a0👩‍🔬", "text of people stays as it is"


def test_json_for_people_is_the_same_json() -> None:
    text = as_json({EVIL: ["ñ", 1.5, None]})
    assert text.isprintable()
    assert json.loads(text) == {EVIL: ["ñ", 1.5, None]}


def test_a_pipe_bounds_no_line_and_columns_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width() is None
    monkeypatch.setenv("COLUMNS", "60")
    assert width() == 60


def test_saying_goes_on_without_a_reader_and_ends_in_order() -> None:
    code = (
        "import sys; from d8mesh.edge.terminal import say\n"
        "sys.stdin.readline()\n"
        "for n in range(9): say('x' * 9999)\n"
        "print('done', file=sys.stderr)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        child.stdin.write(b"go\n")
        child.stdin.close()
        assert child.stderr.read().strip() == b"done"
        assert child.wait(PATIENCE_S) == 0
