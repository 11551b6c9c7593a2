"""What a worker's console says: each thing once, when it happens."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from typing import Any

import pytest

from d8mesh.processes import worker_console
from d8mesh.processes.worker_console import INTERVAL_S, PATIENCE_S, REMIND_S, WorkerConsole
from d8mesh.program import command_name

AT = {"broker_id": "orch-1", "endpoint": "tcp://10.0.0.1:7010"}


RENAMED = (
    f"if that was this machine, and its key file is lost: run {command_name()} join forget bob at "
    f"the orchestrator, then start here {command_name()} worker --name bob"
)


class Scene:
    """A worker whose status is set by hand, its console, and a clock."""

    def __init__(self, url: str | None = None) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.body: dict[str, Any] = {
            "worker_id": "bob",
            "called_before": None,
            "worker_type": "deepseek",
            "version": "1.2",
            "slots": 4,
            "task_types": ["echo"],
            "status_port": 7200,
            "orchestrators": [],
            "lost": [],
            "refused": [],
            "passed_over": [],
            "outbox": None,
            "running": 0,
            "tasks_completed": 0,
            "tasks_failed": 0,
        }
        self.console = WorkerConsole(
            self.status, mesh="d8", url=url, tell=self.lines.append, clock=lambda: self.now
        )

    def status(self) -> dict[str, Any]:
        return dict(self.body)

    def said(self, **changes: Any) -> list[str]:
        """Return what is said after these changes of the status."""
        self.body |= changes
        self.lines.clear()
        self.console.look()
        return list(self.lines)


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.console.begin(folder="/data/workers/1", interfaces="eth0 (10.0.0.2)")
    return made


def test_it_begins_with_who_where_and_what(scene: Scene) -> None:
    assert scene.lines == [
        "worker bob (deepseek), d8mesh 1.2, mesh d8",
        "data in /data/workers/1",
        "takes 4 tasks at once: echo",
        "status page: http://127.0.0.1:7200/health",
        "worker bob: looking for orchestrators of mesh d8 by mDNS on eth0 (10.0.0.2)",
    ]


def test_the_status_page_is_told_where_it_listens() -> None:
    scene = Scene()
    scene.console.begin(folder="x", interfaces="", host="fd00::5")
    assert "status page: http://[fd00::5]:7200/health" in scene.lines


def test_joined_lost_and_back_are_told_with_why_and_how_long(scene: Scene) -> None:
    assert scene.said(orchestrators=[AT]) == ["worker bob joined orch-1 at tcp://10.0.0.1:7010"]
    assert scene.said() == []
    (lost,) = scene.said(orchestrators=[], lost=[{"broker_id": "orch-1", "why": "silent for 10 s"}])
    assert lost.startswith("lost orch-1 at tcp://10.0.0.1:7010: silent for 10 s. Looking")
    assert scene.said() == []
    scene.now += 7
    (back,) = scene.said(orchestrators=[AT], lost=[])
    assert back == "back after 7 s: worker bob joined orch-1 at tcp://10.0.0.1:7010"


def test_a_session_that_is_only_being_renewed_is_not_lost(scene: Scene) -> None:
    scene.said(orchestrators=[AT])
    assert scene.said(orchestrators=[]) == []
    assert scene.said(orchestrators=[AT]) == []


def test_an_orchestrator_whose_place_another_takes_is_lost(scene: Scene) -> None:
    scene.said(orchestrators=[AT])
    lost, joined = scene.said(orchestrators=[{**AT, "broker_id": "orch-2"}])
    assert lost.startswith(
        "lost orch-1 at tcp://10.0.0.1:7010: another orchestrator answers there now. Looking"
    )
    assert joined == "worker bob joined orch-2 at tcp://10.0.0.1:7010"
    gone = {"broker_id": "orch-2", "why": "it left: stopped"}
    assert len(scene.said(orchestrators=[], lost=[gone])) == 1
    scene.now += PATIENCE_S
    assert "no orchestrator found" in scene.said()[0]


def test_what_to_check_is_told_after_a_while_and_again_later(scene: Scene) -> None:
    scene.now += PATIENCE_S
    (line,) = scene.said()
    assert "no orchestrator found for 10 s" in line
    assert "D8_MESH=d8" in line
    assert "ORCHESTRATOR_URL=http://ADDRESS:7001 names one" in line
    assert scene.said() == []
    scene.now += REMIND_S
    (line,) = scene.said()
    assert "no orchestrator found for 10 min" in line


def test_a_url_that_was_given_is_what_to_check() -> None:
    scene = Scene(url="http://pi:7001")
    scene.console.begin(folder="x", interfaces="")
    assert scene.lines[-1].endswith("by mDNS on no interface, and at http://pi:7001")
    scene.now += PATIENCE_S
    (line,) = scene.said()
    assert line.endswith("Does http://pi:7001 (ORCHESTRATOR_URL) answer?")


def test_work_is_told_once_in_an_interval_and_only_if_there_was_any(scene: Scene) -> None:
    scene.said(orchestrators=[AT])
    assert scene.said(tasks_completed=12, tasks_failed=1, running=3) == []
    scene.now += INTERVAL_S
    assert scene.said() == ["in the last 60 s: 12 done, 1 failed, 3 running"]
    scene.now += INTERVAL_S
    assert scene.said() == []
    scene.now += INTERVAL_S
    assert scene.said(tasks_completed=13) == ["in the last 60 s: 1 done, 0 failed, 3 running"]


def test_draining_says_how_many_how_long_and_how_to_stop_at_once(scene: Scene) -> None:
    scene.lines.clear()
    scene.console.drain(3, 25.0)
    (line,) = scene.lines
    assert line.startswith("draining: 3 tasks still run and get up to 25 s")
    assert line.endswith("Ctrl-C again stops at once")
    assert scene.said(running=2) == []
    scene.now += worker_console.DRAIN_TELL_S
    assert scene.said() == ["draining: 2 tasks still running"]
    scene.body |= {"running": 1, "tasks_completed": 7}
    scene.lines.clear()
    scene.console.end()
    assert scene.lines == [
        "worker bob stopped: 7 done, 0 failed; 1 task did not end in time and will run elsewhere"
    ]


def test_each_orchestrator_that_is_passed_over_is_told_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scene.said(passed_over=["a is strange"]) == [
        "an orchestrator is passed over: a is strange"
    ]
    assert scene.said() == []
    monkeypatch.setattr(worker_console, "MAX_REASONS", 2)
    assert len(scene.said(passed_over=[f"{n} is strange" for n in range(9)])) == 1


def test_while_one_is_there_that_refuses_it_is_not_said_that_none_is_found(scene: Scene) -> None:
    refused = "an orchestrator refuses this worker: its key waits"
    assert scene.said(refused=["its key waits"]) == [refused]
    scene.now += PATIENCE_S
    assert scene.said() == []
    scene.now += REMIND_S
    assert scene.said() == [refused]
    assert scene.said() == []
    scene.now += REMIND_S
    (told,) = scene.said(refused=[])
    assert told.startswith("no orchestrator found for")


def test_refusals_a_full_outbox_and_another_name_are_told(scene: Scene) -> None:
    assert scene.said(refused=["another mesh"]) == [
        "an orchestrator refuses this worker: another mesh"
    ]
    assert scene.said() == []
    assert scene.said(outbox="the disk is full") == ["no new tasks are taken: the disk is full"]
    assert scene.said(outbox=None) == ["tasks are taken again"]
    assert scene.said(worker_id="bob-1") == [
        "another worker of the mesh is called bob: this one goes on as bob-1",
        RENAMED,
    ]


def test_who_is_renamed_before_it_is_shown_is_told_of_it_all_the_same() -> None:
    scene = Scene()
    scene.body |= {"worker_id": "bob-1", "called_before": "bob"}
    scene.console.begin(folder="x", interfaces="", wanted="bob")
    assert scene.lines[:2] == ["worker bob (deepseek), d8mesh 1.2, mesh d8", "data in x"]
    assert scene.said()[1:] == [RENAMED]
    assert scene.said() == []


def test_a_machine_without_mdns_is_told_what_helps(scene: Scene) -> None:
    scene.lines.clear()
    scene.console.network_notice("mDNS does not work now, trying again: no multicast")
    assert scene.lines == [
        (
            "note: mDNS does not work now, trying again: no multicast; "
            "ORCHESTRATOR_URL=http://ADDRESS:7001 names an orchestrator"
        )
    ]


def test_what_is_known_early_is_told_after_who_this_is() -> None:
    scene = Scene()
    scene.console.network_notice("no usable network interface is up")
    assert scene.lines == []
    scene.console.begin(folder="x", interfaces="")
    assert scene.lines[0].startswith("worker bob")
    assert scene.lines[-1].startswith("note: no usable network interface is up; ORCHESTRATOR_URL")


def test_a_console_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    worker_console.say_wrapped("one")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    worker_console.say_wrapped("one…")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"one\\u2026\n"


def test_on_a_terminal_lines_are_wrapped_between_words_and_controls_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker_console.say_wrapped("one " * 40 + "\x1b[2J")
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    size = os.terminal_size((60, 20))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *args, **more: size)
    worker_console.say_wrapped("one " * 40 + "\x1b[2J")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("  one")
    assert lines[-1].endswith("\\x1b[2J")
