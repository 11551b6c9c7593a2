"""Bad settings, key files, LLM services and results: each is told in a line, and all goes on.

The numbers are those of the list of bad inputs in `docs/SECURITY.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.edge.transport.keys import kept_pair
from tests.ollama_server import OllamaServer
from tests.security.abuse import Abused, abused_mesh

#: A start that is refused takes a second; of a slow machine many.
START_S: Final = 90.0
SECRET: Final = "too-short-secret"[:12]
MODEL: Final = "deepseek-r1:8b"


def run(command: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command that should refuse to start."""
    rest, broker, status = map(str, free_ports(3))
    ports = {"FLASK_PORT": rest, "D8_BROKER_PORT": broker, "WORKER_STATUS_PORT": status}
    env = {**os.environ, **ports, "D8_DATA_DIR": str(folder), **settings}
    return subprocess.run(
        [sys.executable, "-m", "d8mesh", command],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip


BAD_SETTINGS: Final = {
    "FLASK_PORT": ("70000", "1 to 65535"),
    "D8_MESH": ("a b", "A-Z a-z 0-9"),
    "D8_JOIN": ("everybody", "lan or approve"),
    "TASK_TIMEOUT": ("nan", "seconds"),
    "D8_ORIGINS": ("\x1b[31m", "origins"),
    "D8_LOAD_OPTIONS": ("[" * 2000, "JSON"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
@pytest.mark.parametrize("command", ["orchestrator", "worker"])
def test_38_a_bad_setting_ends_the_start_with_a_line(
    command: str, name: str, tmp_path: Path
) -> None:
    value, allowed = BAD_SETTINGS[name]
    done = run(command, tmp_path, **{name: value})
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if name in line]
    assert allowed in line
    assert "Traceback" not in done.stderr
    assert "\x1b[31m" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="modes of files say nothing there")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666, 0o604])
def test_39_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "orchestrator"
    kept_pair(home)
    (path,) = [each for each in home.iterdir() if each.name.endswith(".key")]
    path.chmod(mode)
    done = run("orchestrator", tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    told = done.stdout + done.stderr
    assert str(path) in told
    assert "Traceback" not in told
    assert path.read_bytes().decode() not in told


@pytest.mark.parametrize("key", [SECRET, "a" * 257, "with blanks in it", "0123456789abcdeñ", "x"])
@pytest.mark.parametrize("command", ["orchestrator", "worker"])
def test_40_a_weak_or_mistyped_mesh_key_is_refused_and_not_shown(
    command: str, key: str, tmp_path: Path
) -> None:
    done = run(command, tmp_path, D8_MESH_KEY=key)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if "D8_MESH_KEY" in line]
    assert "(hidden)" in line
    assert len(key) < 3 or key not in done.stdout + done.stderr


# ----------------------------------------------------------------- services and results


@pytest.mark.slow
@pytest.mark.parametrize(
    "behaviour", ["redirect", "endless_line", "not_json", "compressed", "error", "wrong_shape"]
)
def test_41_a_service_that_misbehaves_fails_the_task_and_no_worker(behaviour: str) -> None:
    server: Any = OllamaServer()
    with abused_mesh(server) as abused:
        server.behaviour = behaviour
        data = {"messages": [{"role": "user", "content": "hi"}], "model": MODEL}
        task = {"type": "agent_action", "data": data, "max_attempts": 1}
        task_id = abused.http.post("/api/tasks/submit", task).json["task_id"]
        told = abused.http.ask("GET", f"/api/tasks/{task_id}/wait?timeout_s=60").json
        assert told["state"] == "failed", told
        assert told["result"]["code"].startswith("backend."), told
        assert "Traceback" not in json.dumps(told)
        abused.check()


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


def test_42_a_result_over_the_limit_fails_the_task_and_says_so(abused: Abused) -> None:
    text = "x" * (32 * 1024 * 1024 - 60)  # its data fits, the same as a result does not
    task = {"type": "echo", "data": {"text": text}, "max_attempts": 1}
    sent = abused.http.post("/api/tasks/submit", task)
    assert sent.status == 201, sent.body[:300]
    path = f"/api/tasks/{sent.json['task_id']}/wait?timeout_s=60"
    told = abused.http.ask("GET", path).json
    assert told["state"] == "failed"
    assert "result_too_large" in told["result"]["error"]
    abused.check()


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "\x1b]0;owned\x07\x1b[2J", "\u202e\u2066", "{{7*7}}",
     "%s%n\r\n\r\n", "\x00\x01\x7f", "💩" * 100],
    ids=repr,
)  # fmt: skip
def test_42_whatever_a_result_looks_like_it_is_data(abused: Abused, text: str) -> None:
    sent = abused.http.post("/api/tasks/submit", {"type": "echo", "data": {"text": text}})
    told = abused.http.ask("GET", f"/api/tasks/{sent.json['task_id']}/wait?timeout_s=60")
    assert told.json["result"]["output"] == {"text": text}
    assert (told.field("content-type") or "").startswith("application/json")
    logs = [log.read_bytes() for log in abused.mesh.folder.rglob("*.log")]
    assert not any(text.encode() in log for log in logs)
    abused.goes_on()
