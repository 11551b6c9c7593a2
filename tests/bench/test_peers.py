"""A peer's script is asked by lines of JSON, and what goes wrong with it is said."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from bench.peers import PEERS, servers
from bench.peers.environment import MARK, environment
from bench.peers.session import session
from bench.raw_loop import HOME
from d8mesh.errors import D8Error

ECHO = """
import subprocess, sys
from bench.inside import harness

class Echo:
    def all_of(self, count): print("a line of the peer's own")
    def one(self): pass

harness.start(sys.executable, "-c", "import time; time.sleep(600)")
harness.serve({"echo": "1.2"}, Echo())
"""


def command_of(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "peer.py"
    file.write_text(text, "utf-8")
    return [sys.executable, str(file)]


def test_a_session_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with session(command_of(tmp_path, ECHO), {}, tmp_path, "nothing") as running:
        assert running.versions == {"echo": "1.2"}
        assert running.keeps == "nothing"
        assert running.throughput(1000) > 0
        assert len(running.latencies(7)) == 7
        started = psutil.Process().children(recursive=True)
    assert len(started) == 2
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_a_script_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = command_of(tmp_path, "raise SystemExit('no port is free')")
    with pytest.raises(D8Error, match="it ended at start: no port is free"):
        with session(command, {}, tmp_path, "nothing"):
            pass


def test_a_script_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    command = command_of(tmp_path, "import sys; sys.stdin.read()")
    with pytest.raises(D8Error, match=r"no answer to start within 0\.2 s"):
        with session(command, {}, tmp_path, "nothing", answer_s=0.2):
            pass


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path) -> None:
    """What stands there complete is used; pip is not asked again."""
    with pytest.raises(D8Error, match="pip install"):
        environment(["./not-here"], tmp_path)
    (made,) = tmp_path.iterdir()
    (made / MARK).write_text("", "utf-8")
    assert environment(["./not-here"], tmp_path).is_relative_to(made)


def test_a_server_that_cannot_be_had_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get there either
    with pytest.raises(D8Error, match="it needs nats-server: install the package"):
        servers.provide("nats-server", "nats-server")


@pytest.mark.parametrize("script", [peer.script for peer in PEERS.values()])
def test_each_peer_has_its_script(script: str) -> None:
    assert (HOME / "bench" / "inside" / f"{script}.py").is_file()
