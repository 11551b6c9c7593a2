"""The orchestrator as a command: what it says, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.apps.children import Children, RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.processes.launcher import MAX_PAUSE_S, MAX_START_PAUSE_S, _Launcher, pause_before_start
from tests.end_to_end.processes import child_running, kill, until

PATIENCE_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    rest, broker = free_ports(2)
    return {
        "D8_MESH": f"orchestrator-{rest}",
        "D8_DATA_DIR": str(tmp_path),
        "FLASK_HOST": "127.0.0.1",
        "FLASK_PORT": str(rest),
        "D8_BROKER_PORT": str(broker),
    }


@pytest.fixture
def children(settings: dict[str, str]) -> Iterator[Children]:
    with Children(settings) as started:
        yield started


def ended(child: RunningCommand) -> tuple[int, str]:
    """Return how a command that ends by itself ended, and all it said."""
    code = child.wait(PATIENCE_S)
    return code, "\n".join(child.lines)


def up(children: Children) -> RunningCommand:
    child = children.start("orchestrator", "orchestrator")
    until(lambda: child.is_up.is_set() or not child.is_running, "a first line")
    assert child.is_running, list(child.lines)
    return child


def test_it_says_where_it_is_and_ends_with_its_parent(
    children: Children, settings: dict[str, str]
) -> None:
    child = up(children)
    assert f"REST on port {settings['FLASK_PORT']}" in child.lines[0]
    health = ask(f"http://127.0.0.1:{settings['FLASK_PORT']}", "/health")
    assert (health["status"], health["service"]) == ("healthy", "d8-orchestrator")
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_it_says_where_its_data_is_and_what_a_stop_waits_for(
    children: Children, settings: dict[str, str], tmp_path: Path
) -> None:
    child = up(children)
    address = f"http://127.0.0.1:{settings['FLASK_PORT']}/health"
    for what in (address, "cannot reach it", str(tmp_path), str(tmp_path / "logs")):
        until(lambda: any(what in line for line in child.lines), what)  # noqa: B023
    child.close_input()
    assert child.wait(PATIENCE_S) == 0
    assert child.lines[-2].startswith("stopping: ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")
@pytest.mark.parametrize(("process", "name"), [("_broker", "broker"), ("_web", "REST process")])
def test_a_part_that_is_killed_is_told_with_why_and_when_it_is_back(
    children: Children, process: str, name: str
) -> None:
    child = up(children)
    pid = child_running(child.process.pid, process)
    assert pid is not None
    kill(pid)
    fell = f"the {name} ended (killed by SIGKILL): it is started again at once"
    until(lambda: fell in child.lines, fell)
    back = f"the {name} is back after "
    until(lambda: any(line.startswith(back) for line in child.lines), back)
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_in_order(children: Children, number: signal.Signals) -> None:
    child = up(children)
    child.process.send_signal(number)
    assert child.wait(PATIENCE_S) == 0
    assert child.lines[-1] == "orchestrator stopped"


def test_the_rest_is_asked_to_end_and_not_killed_when_the_broker_has_moved() -> None:
    code = "import sys; sys.stdin.read(); print('drained', flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    launcher = _Launcher(Config(), None)
    launcher._web.process = child
    launcher._ready('{"event": "ready", "port": 7011, "broker_id": "o", "server_key": "k"}')
    assert child.wait(PATIENCE_S) == 0
    assert child.stdout is not None
    with child.stdout as said:
        assert said.read() == "drained\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not there")
@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_flask_host_binds_the_broker_too(
    children: Children, settings: dict[str, str], host: str, is_open: bool
) -> None:
    child = children.start("orchestrator", "orchestrator", settings={"FLASK_HOST": host})
    until(lambda: child.is_up.is_set() or not child.is_running, "a first line")
    assert child.is_running, list(child.lines)
    for port in (settings["FLASK_PORT"], settings["D8_BROKER_PORT"]):
        with socket.socket() as probe:
            assert (probe.connect_ex(("127.0.0.2", int(port))) == 0) == is_open
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_one_that_had_come_up_is_soon_back_however_often_it_died() -> None:
    pauses = [pause_before_start(deaths, was_up=True) for deaths in range(8)]
    assert pauses == [0.0, 0.2, 0.4, 0.8, *[MAX_PAUSE_S] * 4]
    assert pause_before_start(8, was_up=False) == MAX_START_PAUSE_S > MAX_PAUSE_S
    assert pause_before_start(5000, was_up=True) == MAX_PAUSE_S  # a night of a full disk


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there: a death is an exit code")
def test_a_broker_that_is_killed_while_it_starts_is_started_again(
    settings: dict[str, str], tmp_path: Path
) -> None:
    point = tmp_path / "failpoint"
    point.write_text("broker.restored", "ascii")
    with Children({**settings, "D8_FAILPOINT": f"@{point}"}) as children:
        child = up(children)
        assert not point.exists()
        child.close_input()
        assert child.wait(PATIENCE_S) == 0


def test_a_taken_port_is_named_with_its_holder_and_its_variable(
    children: Children, settings: dict[str, str]
) -> None:
    port = int(settings["FLASK_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        code, said = ended(children.start("orchestrator", "orchestrator"))
    assert code == 1
    assert f"port {port}" in said
    assert "FLASK_PORT" in said
    if sys.platform.startswith("linux"):
        assert re.search(r"is taken by \S.* \(process \d+\): ", said)


def test_one_port_for_both_servers_is_refused_as_what_it_is(children: Children) -> None:
    both = {"FLASK_PORT": "7010", "D8_BROKER_PORT": "7010"}
    code, said = ended(children.start("orchestrator", "orchestrator", settings=both))
    assert code == 2
    assert "FLASK_PORT and D8_BROKER_PORT are both 7010" in said


def test_an_address_of_another_machine_is_not_the_ports_fault(children: Children) -> None:
    elsewhere = {"FLASK_HOST": "10.254.254.254"}
    code, said = ended(children.start("orchestrator", "orchestrator", settings=elsewhere))
    assert code == 2
    assert "FLASK_HOST='10.254.254.254': expected an address of this machine" in said
    assert "FLASK_PORT" not in said


def test_another_on_the_same_folder_and_port_is_told_of_the_folder(children: Children) -> None:
    up(children)
    code, said = ended(children.start("second", "orchestrator"))
    assert code == 3
    assert "in use by another orchestrator" in said


def test_two_on_one_folder_are_refused(children: Children) -> None:
    up(children)
    rest, broker = free_ports(2)
    again = {"FLASK_PORT": str(rest), "D8_BROKER_PORT": str(broker)}
    code, said = ended(children.start("second", "orchestrator", settings=again))
    assert code == 3
    assert "in use by another orchestrator" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")
@pytest.mark.parametrize("process", ["_broker", "_web"])
def test_a_start_waits_for_what_a_launcher_that_was_killed_has_left(
    children: Children, process: str
) -> None:
    killed = up(children)
    left = child_running(killed.process.pid, process)
    assert left is not None
    unnoticed = os.open(f"/proc/{left}/fd/0", os.O_WRONLY)  # its standard input does not end
    try:
        kill(killed.process.pid)
        killed.process.wait(PATIENCE_S)
        child = children.start("again", "orchestrator")
        until(lambda: child.is_up.is_set() or not child.is_running, "a first line")
        assert "an earlier orchestrator of this folder is still ending" in child.lines[0]
    finally:
        os.close(unnoticed)
    until(lambda: len(child.lines) > 1 or not child.is_running, "the start")
    assert child.lines[1].startswith("orchestrator orch-"), list(child.lines)
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_a_broker_whose_launcher_died_before_it_was_up_takes_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "d8mesh", "_broker"],
        stdin=subprocess.PIPE,
        env=os.environ | {"D8_DATA_DIR": str(tmp_path)},
    ) as broker:
        assert broker.stdin is not None
        broker.stdin.close()
        assert broker.wait(PATIENCE_S) == 0
    assert not (tmp_path / "orchestrator" / "journal.db").exists()


def test_a_start_waits_for_an_orchestrator_that_is_told_to_stop(children: Children) -> None:
    first = up(children)
    first.close_input()
    child = children.start("again", "orchestrator")
    until(lambda: any("REST on port" in line for line in child.lines), "the second start")
    assert first.wait(PATIENCE_S) == 0


def test_a_broken_journal_is_refused_and_kept(children: Children, tmp_path: Path) -> None:
    file = tmp_path / "orchestrator" / "journal.db"
    file.parent.mkdir()
    file.write_bytes(b"this is no database " * 100)
    code, said = ended(children.start("orchestrator", "orchestrator"))
    assert code == 4
    assert "cannot be read as a journal" in said
    assert file.read_bytes().startswith(b"this is no database")


def test_the_next_free_broker_port_is_taken_and_told(
    children: Children, settings: dict[str, str]
) -> None:
    port = int(settings["D8_BROKER_PORT"])
    with socket.create_server(("0.0.0.0", port)):
        up(children)
        health = ask(f"http://127.0.0.1:{settings['FLASK_PORT']}", "/health")
    assert port < health["broker_port"] < port + 10


def test_a_bad_setting_stops_it_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", "orchestrator", "--set=TASK_QUEUE_SIZE=many"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: TASK_QUEUE_SIZE='many': expected tasks, 1 to 100000000"
    ]


@pytest.mark.parametrize("command", ["orchestrator", "worker"])
def test_a_data_folder_that_cannot_be_used_is_one_line(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", command, f"--set=D8_DATA_DIR={file}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: D8_DATA_DIR={str(file)!r}: expected a folder")
