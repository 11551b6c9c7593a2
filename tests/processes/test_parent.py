"""A child notices at once that its parent is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from d8mesh.processes.parent import stop_signals

ROOT = Path(__file__).resolve().parents[2]


def test_each_system_has_its_own_signals_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert set(stop_signals()) == (
        {signal.SIGINT, 21} if sys.platform == "win32" else {signal.SIGINT, signal.SIGTERM}
    )
    monkeypatch.setattr(sys, "platform", "win32")
    assert set(stop_signals()) == {signal.SIGINT, 21}


def test_who_only_begins_ends_at_once_with_its_parent() -> None:
    code = (
        "import threading\nfrom d8mesh.processes.parent import end_at_once_with_parent\n"
        "end_at_once_with_parent()\nprint('up', flush=True)\nthreading.Event().wait(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "up\n"
        child.stdin.close()
        assert child.wait(30) == 0


def test_the_end_of_standard_input_is_the_end_of_the_parent() -> None:
    code = (
        "import threading\nfrom d8mesh.processes.parent import end_with_parent\n"
        "gone = threading.Event()\nend_with_parent(gone.set)\n"
        "print('up', flush=True)\nassert gone.wait(60)\nprint('gone')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.stdin.write("whatever")
    child.stdin.close()
    assert child.stdout.read() == "gone\n"
    child.stdout.close()
    assert child.wait(60) == 0
