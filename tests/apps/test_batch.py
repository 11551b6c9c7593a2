"""The command `batch` over real processes: asked, stopped, gone on with, asked again."""

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

from d8mesh.apps.orchestrators import ask
from tests.doors.llm_mesh import CHAT, EMBEDDER, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(tokens_per_s=500)) as made:
        yield made


class Batch:
    """Runs the command in a folder of its own."""

    def __init__(self, mesh: LlmMesh, folder: Path) -> None:
        self.folder = folder
        self._env = {
            **os.environ,
            "D8_MESH": mesh.running.config.mesh,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(folder / "data"),
            "ORCHESTRATOR_URL": mesh.url,
            "D8_NO_ENV_FILE": "1",
            "D8_LANG": "en",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "d8mesh", "batch", *arguments],
            cwd=self.folder,
            env=self._env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, given: str = "") -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(given, PATIENCE_S)
        return process.returncode, out, err

    def write(self, rows: list[dict[str, Any]], name: str = "in.jsonl") -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / name).write_text(text, "utf-8")

    def answers(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        text = path.read_text("utf-8") if path.exists() else ""
        return [json.loads(row) for row in text.splitlines()]


@pytest.fixture
def batch(mesh: LlmMesh, tmp_path: Path) -> Batch:
    mesh.mend()
    return Batch(mesh, tmp_path)


def prompts(count: int, text: str = "say 3 words") -> list[dict[str, Any]]:
    return [{"prompt": text, "id": f"c{n}", "model": CHAT} for n in range(1, count + 1)]


def listed(mesh: LlmMesh) -> list[dict[str, Any]]:
    return list(ask(mesh.url, "/api/tasks?limit=1000")["tasks"])


def test_every_prompt_has_its_answer_in_order(batch: Batch) -> None:
    batch.write(prompts(30))
    code, out, err = batch.run("in.jsonl", "--out", "out.jsonl", "--json")
    assert code == 0, err
    assert [row["id"] for row in batch.answers()] == [f"c{n}" for n in range(1, 31)]
    assert all(row["output"] and row["machine"] for row in batch.answers())
    assert json.loads(out)["completed"] == 30
    assert "30 answered, 0 failed" in err


def test_the_same_command_again_asks_nothing(batch: Batch, mesh: LlmMesh) -> None:
    batch.write(prompts(3))
    batch.run("in.jsonl", "--out", "out.jsonl")
    asked = len(mesh.standins[0].chats)
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl")
    assert (code, "3 of 3 are answered already" in err) == (0, True)
    assert len(mesh.standins[0].chats) == asked == 3


def test_lines_as_openai_has_them_are_answered_so(batch: Batch) -> None:
    row = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": EMBEDDER, "input": "x"},
    }
    batch.write([row])
    assert batch.run("in.jsonl", "--out", "out.jsonl")[0] == 0
    (answer,) = batch.answers()
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("a", 200)
    assert answer["response"]["body"]["object"] == "list"


def test_standard_input_is_answered_on_standard_output(batch: Batch) -> None:
    code, out, _ = batch.run("-", "--model", CHAT, given='{"prompt": "say 2 words"}\n')
    assert (code, json.loads(out)["n"]) == (0, 1)


def test_wrong_lines_are_told_and_nothing_is_sent(batch: Batch, mesh: LlmMesh) -> None:
    before = len(mesh.tasks())
    batch.write([{"prompt": "a"}, {"prompt": "b", "temperature": "hot"}])
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl")
    assert (code, "line 2: temperature: expected a number" in err) == (2, True)
    assert len(mesh.tasks()) == before
    assert sorted(each.name for each in batch.folder.iterdir()) == ["in.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal to a child")
def test_who_stops_with_ctrl_c_is_told_how_to_go_on_and_loses_nothing(batch: Batch) -> None:
    batch.write(prompts(40, "say 60 words"))
    process = batch.start("in.jsonl", "--out", "out.jsonl")
    until(lambda: batch.answers(), "the first answer")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "the same command again fetches it" in err
    assert "batch in.jsonl --out out.jsonl" in err
    assert 0 < len(batch.answers()) < 40
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl")
    assert (code, "are answered already" in err) == (0, True)
    assert [row["id"] for row in batch.answers()] == [f"c{n}" for n in range(1, 41)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal to a child")
def test_ctrl_c_without_out_cancels_what_nobody_could_fetch(batch: Batch, mesh: LlmMesh) -> None:
    batch.write(prompts(40, "say 400 words"))
    before = {task["task_id"] for task in listed(mesh)}
    process = batch.start("in.jsonl")
    assert process.stdout is not None
    process.stdout.readline()  # the first answer: the others are under way
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "what was still asked is cancelled" in err) == (130, True)
    assert "40 of 40" not in err
    assert not any(json.loads(row)["error"] for row in out.splitlines())
    states = [task["state"] for task in listed(mesh) if task["task_id"] not in before]
    assert len(states) == 40
    assert not {"queued", "delayed"} & set(states)
    assert "cancelled" in states


def test_a_failure_has_its_reason_and_is_asked_again_on_request(
    batch: Batch, mesh: LlmMesh
) -> None:
    batch.write(
        [*prompts(3), {"prompt": "x", "model": "nobody-has:this"}, {"prompt": "say 1 word"}]
    )
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl")
    assert code == 1
    assert "no service has nobody-has:this" in err
    assert "--retry-failed asks them again" in err
    failed = [row for row in batch.answers() if row["error"]]
    assert [(row["n"], row["error"]["code"]) for row in failed] == [(4, "model_not_found")]
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl", "--retry-failed")
    assert (code, [row["n"] for row in batch.answers()]) == (1, [1, 2, 3, 4, 5])


def test_what_somebody_cancelled_is_answered_when_it_is_asked_again(
    batch: Batch, mesh: LlmMesh
) -> None:
    batch.write(prompts(20, "say 40 words"))
    process = batch.start("in.jsonl", "--out", "out.jsonl", "--order", "done")
    until(lambda: batch.answers(), "the first answer")
    waiting = mesh.get("/api/tasks?state=queued&order=newest").body
    task_id = json.loads(waiting)["tasks"][0]["task_id"]
    assert mesh.post(f"/api/tasks/{task_id}/cancel", {}).status == 200
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "19 answered, 1 failed" in err) == (1, True), err
    code, _, err = batch.run("in.jsonl", "--out", "out.jsonl", "--order", "done", "--retry-failed")
    assert code == 0, err
    assert sorted(row["id"] for row in batch.answers()) == sorted(f"c{n}" for n in range(1, 21))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("in.jsonl", "--out", "in.jsonl"), "that is the input"),
        (("in.jsonl", "--out", "."), "that is a folder"),
        (("in.jsonl", "--out", "none/out.jsonl"), "there is no such folder"),
        (("in.jsonl", "--retry-failed"), "--retry-failed: expected --out"),
        (("in.jsonl", "--schema", "none.json"), "--schema none.json"),
        (("none.jsonl", "--out", "out.jsonl"), "cannot be read"),
    ],
)
def test_wrong_options_are_told(batch: Batch, arguments: tuple[str, ...], told: str) -> None:
    batch.write(prompts(1))
    code, _, err = batch.run(*arguments)
    assert (code, told in err) == (2, True), err
