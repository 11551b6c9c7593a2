"""The command `evolution` against a mesh of processes: agents, Ctrl-C, going on, the best asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.demo import free_ports
from tests.end_to_end.processes import until
from tests.ollama_standin import OllamaStandin

PATIENCE_S = 120.0
CHAT = "qwen2.5:3b"
GENOME = {
    "genes": {
        "prompt": {"kind": "choice", "of": [f"say {n} words {{question}}" for n in range(2, 33)]},
        "temperature": {"kind": "number", "low": 0, "high": 1, "step": 0.1},
    }
}
MOST = 30
#: Of this one chance alone finds no good agent.
SEED = 38
#: The more words, the more points.
QUESTIONS = [
    {"question": f"({count})", "regex": rf"^(\S+( |$)){{{count},}}"}
    for count in range(3, MOST + 1, 3)
]


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    with OllamaStandin(load_s=0.05) as running:
        yield running


@pytest.fixture
def running(standin: OllamaStandin) -> Iterator[Mesh]:
    settings = {
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        "DEEPSEEK_BASE_URL": standin.url,
        "DEEPSEEK_MODEL": CHAT,
    }
    with mesh(workers=0) as made:
        child = made.children.start("worker", "worker", settings=settings)
        until(lambda: any(line.startswith("Ollama at ") for line in child.lines), "the service")
        yield made


def command(running: Mesh, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start `evolution` as a person would."""
    for name, content in (("genome", GENOME), ("questions", QUESTIONS)):
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    settings = {
        "D8_MESH": running.config.mesh,
        "D8_INTERFACES": "127.0.0.1",
        "ORCHESTRATOR_URL": running.url,
        "D8_DATA_DIR": str(folder / "data"),
    }
    words = "--genome genome.json --questions questions.json --json --population 6 --islands 2"
    words += f" --seed {SEED} --generations 60 --migrate-every 2"
    return subprocess.Popen(
        [sys.executable, "-m", "d8mesh", "evolution", *words.split(), *more],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str], code: int) -> dict[str, Any]:
    said, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, told
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.timeout(300)
def test_agents_evolve_over_processes_and_a_run_goes_on_after_ctrl_c(
    running: Mesh, standin: OllamaStandin, tmp_path: Path
) -> None:
    whole = done(command(running, tmp_path, "--output", "whole"), 0)
    assert (whole["best_cost"], whole["stopped"], whole["failures"]) == (0, "solved", 0)
    assert whole["generations"] >= 3
    asked = [json.dumps(chat, sort_keys=True) for chat in standin.chats]
    assert len(asked) == len(set(asked)), "no agent is asked twice"

    standin.set_speed(0.02)
    process = command(running, tmp_path, "--output", "parts")
    until(lambda: len(standin.chats) > len(asked), "a question is under way")
    process.send_signal(signal.SIGINT)
    assert done(process, 130)["stopped"] == "interrupted"
    standin.set_speed(1.0)
    parts = done(command(running, tmp_path, "--output", "parts"), 0)
    for name in ("best", "best_costs", "mean_costs", "island_costs"):
        assert parts[name] == whole[name], name

    data = json.loads((tmp_path / "parts" / "best.json").read_text("utf-8"))
    with running.client() as client:
        answer = client.submit("agent_action", data).result(PATIENCE_S)
    assert len(str(answer["output"]).split()) >= MOST
    assert "<svg" in (tmp_path / "parts" / "evolution.html").read_text("utf-8")
