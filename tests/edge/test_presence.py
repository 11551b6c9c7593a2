"""Who is at work in a folder."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from d8mesh.edge.presence import Presence, is_present

CHILD = (
    "import pathlib, sys\n"
    "from d8mesh.edge.presence import Presence\n"
    "here = Presence(pathlib.Path(sys.argv[1]))\n"
    "print(here.enter(), flush=True)\n"
    "sys.stdin.read()\n"
)


def test_who_is_there_is_seen_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "here.lock"
    assert not is_present(path)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert is_present(path)
        assert not Presence(path).enter()
        other.kill()
        other.wait()
    assert not is_present(path)


def test_one_has_it_until_it_leaves(tmp_path: Path) -> None:
    first, second = Presence(tmp_path / "here.lock"), Presence(tmp_path / "here.lock")
    assert first.enter()
    begun = time.monotonic()
    assert not second.enter(0.2)
    assert time.monotonic() - begun >= 0.2
    first.leave()
    assert second.enter()
    second.leave()


def test_where_nothing_can_be_locked_nobody_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Presence(tmp_path / "file" / "here.lock").enter()
