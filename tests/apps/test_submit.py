"""The command `submit`: what it takes, what it prints, how it ends."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.mesh import Mesh as Processes
from bench.mesh import mesh
from d8mesh.apps.submit import _FollowedOutput, read, run_with
from d8mesh.apps.work import reason_of
from d8mesh.core.protocol.task import parse_id
from d8mesh.errors import ConfigError, WaitTimeoutError
from d8mesh.nodes.client import Client
from d8mesh.options import submit as add_arguments
from d8mesh.program import command_name
from tests.end_to_end.processes import until
from tests.nodes.mesh import mesh_in

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def speak(data: dict[str, Any], context: Any) -> dict[str, Any]:
    for piece in data["pieces"]:
        context.emit(piece)
    if data.get("fails"):
        raise ValueError("no voice\x1b[31m")
    return {"said": len(data["pieces"])}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with mesh_in(tmp_path_factory.mktemp("mesh")) as made:
        port = made.broker()
        worker = made.worker(port)
        worker.register("echo", lambda data: data)
        worker.register("speak", speak)
        made.run(worker)
        connected = made.client(port)
        assert connected.wait_connected(PATIENCE_S)
        yield connected


def ended(client: Client, *arguments: str, late: float | None = None) -> int:
    options = options_of(*arguments)
    return run_with(client, read(options.data, is_lines=options.lines), options, late)


def test_the_id_is_printed_and_the_task_is_safe(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(client, "echo", '{"a": 1}', "--priority", "9") == 0
    task_id = capsys.readouterr().out.strip()
    parse_id(task_id)
    task = client.task(task_id)
    assert task.result(PATIENCE_S)["output"] == {"a": 1}
    assert task.status()["priority"] == 9
    assert ended(client, "echo", "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() == {"task_id", "warnings"}


def test_the_result_is_printed_alone_and_words_beside(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(client, "echo", '{"a": "\\u009b\\u001b[31m"}', "--wait") == 0
    told = capsys.readouterr()
    (line,) = told.out.splitlines()
    assert line.isprintable()
    assert json.loads(line)["output"] == {"a": "\x9b\x1b[31m"}
    assert told.err.startswith("task ")
    assert ended(client, "echo", "--wait", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["state"], body["result"]["output"]) == ("completed", {})


@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_failure_is_told_with_its_reason_and_code_1(
    client: Client, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    data = '{"pieces": [], "fails": true}'
    assert ended(client, "speak", data, how, "--attempts", "1") == 1
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith("error: task ")
    assert last.endswith(r": ValueError: no voice\x1b[31m")
    assert ended(client, "speak", data, how, "--attempts", "1", "--json") == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["state"], body["code"]) == ("failed", "task.failed")
    assert body["result"]["error"].startswith("ValueError: no voice")


def test_what_is_waited_for_too_long_goes_on_and_that_is_said(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in ("--wait", "--follow"):
        with pytest.raises(WaitTimeoutError, match=r"within 0.3 s \(--timeout\)"):
            ended(client, "nobody", "{}", how, "--timeout", "0.3", late=0.0)
        told = capsys.readouterr().err
        (line,) = [line for line in told.splitlines() if line.endswith("goes on without you:")]
        task_id = line.split()[1]
        assert f"`{command_name()} tasks show {task_id}` looks at it" in told
        assert client.task(task_id).status()["state"] == "queued"
        assert client.task(task_id).cancel()


def test_lines_are_many_tasks(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b'{"n": 0}\n\n{"n": 1}\r\n{"n": 2}'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows)))
    assert ended(client, "echo", "-", "--lines", "--wait") == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == "3 tasks completed, 0 did not"
    bodies = [json.loads(line) for line in told.out.splitlines()]
    assert sorted(body["result"]["output"]["n"] for body in bodies) == [0, 1, 2]
    assert all(body["line"] == body["result"]["output"]["n"] + 1 for body in bodies)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows)))
    assert ended(client, "echo", "-", "--lines") == 0
    assert len(set(capsys.readouterr().out.split())) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"pieces": 1}')))
    assert ended(client, "speak", "-", "--lines", "--wait", "--attempts", "1") == 1


def test_lines_that_are_waited_for_too_long_go_on_and_are_named(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = io.TextIOWrapper(io.BytesIO(b"{}\n{}\n{}\n{}\n"))
    monkeypatch.setattr(sys, "stdin", rows)
    with pytest.raises(WaitTimeoutError, match=r"within 0.3 s \(--timeout\)"):
        ended(client, "nobody", "-", "--lines", "--wait", "--timeout", "0.3", late=0.0)
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith("4 tasks go on without you: ")
    assert first.endswith(", …")
    assert second == f"  `{command_name()} tasks list` looks at them"
    for body in client.tasks(type="nobody"):
        client.task(body["task_id"]).cancel()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{a: 1}", "the data: expected a JSON object, saw '{a: 1}'"),
        ("[1]", r"such as \{\"key\": 1\}, saw '\[1\]'"),
        ("", "saw ''"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("@/no/such/file", "/no/such/file cannot be read"),
        ("@", "cannot be read"),
    ],
)
def test_what_is_no_object_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(text)


def test_data_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xb1"}')
    assert read(f"@{file}") == [{"a": "ñ"}]
    file.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(ConfigError, match=r"data\.json, line 2: expected JSON, saw .*char 6\)\)$"):
        read(f"@{file}", is_lines=True)
    file.write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(ConfigError, match="expected UTF-8"):
        read(f"@{file}")
    file.write_bytes(b"\n")
    with pytest.raises(ConfigError, match="on each line, there is none"):
        read(f"@{file}", is_lines=True)


def test_a_warning_of_many_tasks_is_told_once_and_stands_with_each_in_json(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("{}\n{}\n", "utf-8")
    assert ended(client, "ehco", f"@{file}", "--lines", "--json") == 0
    told = capsys.readouterr()
    (warning,) = told.err.splitlines()
    assert warning.endswith("did you mean 'echo'?")
    for line in told.out.splitlines():
        assert json.loads(line)["warnings"] == [warning.removeprefix("warning: ")]


def test_who_follows_hears_all_from_the_first_piece_on(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [f"line {n}\n" for n in range(1000)]
    assert ended(client, "speak", json.dumps({"pieces": pieces}), "--follow") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:-1] == [piece.rstrip() for piece in pieces]
    assert "missing" not in told.err


def test_what_was_missed_is_said_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output = _FollowedOutput(is_json=False)
    output.piece("a")
    output.missed(3)
    output.piece("b")
    output.end_line()
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "a\nb\n", "a part of the output is missing here (3 pieces)\n",
    )  # fmt: skip
    _FollowedOutput(is_json=True).missed(None)
    assert json.loads(capsys.readouterr().out) == {"missed": None}


def test_an_attempt_that_begins_again_makes_what_it_printed_void(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = _FollowedOutput(is_json=False)
    output.piece("half")
    output.restarted()
    output.piece({"n": 1})
    assert capsys.readouterr() == (
        'half\n{"n": 1}\n',
        "that attempt failed: another one begins, what it printed is void\n",
    )
    _FollowedOutput(is_json=True).restarted()
    assert json.loads(capsys.readouterr().out) == {"restarted": True}


# --- as processes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with mesh(workers=0) as running:
        arguments = ("--tasks", "tests/end_to_end/slow_tasks.py")
        running.workers.append(running.children.start("w", "worker", *arguments))
        running.await_workers(1)
        yield running


def command(running: Processes, *arguments: str) -> list[str]:
    settings = {"D8_MESH": running.config.mesh, "ORCHESTRATOR_URL": running.url}
    given = [f"--set={name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "d8mesh", *arguments, *given]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_control_c_leaves_the_task_and_says_how_to_find_it(
    processes: Processes, tmp_path: Path, how: str
) -> None:
    trace = tmp_path / "trace"
    data = json.dumps({"seconds": 3, "trace": str(trace)})
    with subprocess.Popen(
        command(processes, "submit", "slow", data, how),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        until(trace.exists, "the start of the task")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, out) == (130, "")
    assert "goes on without you" in err
    task_id = err.split()[1]
    assert f"tasks cancel {task_id}` cancels it" in err
    with processes.client() as client:
        assert client.task(task_id).result(PATIENCE_S)["output"] == {"done": True}


def test_an_orchestrator_that_goes_is_said_to_who_waits(tmp_path: Path) -> None:
    with mesh_in(tmp_path) as made:
        port = made.broker()
        client = made.client(port)
        task = client.submit("nobody", {})
        task.wait_accepted(PATIENCE_S)
        assert "no worker" in reason_of(task)
        made.stop_broker(*made.brokers[0])
        began = time.monotonic()
        assert "no orchestrator" in reason_of(task)
        assert time.monotonic() - began < PATIENCE_S / 4
