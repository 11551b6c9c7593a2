"""Batches while machines die, the orchestrator starts again and the command is stopped.

Exactly one line for each line, each name once.
"""

from __future__ import annotations

import collections
import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.apps.test_batch import PATIENCE_S, Batch
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import child_running, kill, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

COUNTS = [120, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
LONG_S = 600.0


@pytest.fixture
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(*(machine(tokens_per_s=200, num_parallel=4) for _ in range(2))) as made:
        yield made


def kill_orchestrator(mesh: LlmMesh) -> None:
    """End launcher, broker and web process as a power failure would, and start them again."""
    launcher = mesh.running.orchestrator.process
    children = [child_running(launcher.pid, name) for name in ("_broker", "_web")]
    for pid in (launcher.pid, *filter(None, children)):
        kill(pid)
    launcher.wait(PATIENCE_S)
    mesh.running.restart_orchestrator()
    mesh.running.await_workers(1)


def kill_part(mesh: LlmMesh, name: str) -> None:
    """End one process of the orchestrator; its launcher brings it back."""
    pid = child_running(mesh.running.orchestrator.process.pid, name)
    assert pid is not None
    kill(pid)


def lose_machine(mesh: LlmMesh) -> None:
    """Let a worker's machine die, and another one come."""
    mesh.kill_worker(0)
    mesh.add(mesh.standins[0], name="worker-new")
    mesh.standins.pop()


@pytest.mark.parametrize("count", COUNTS)
def test_the_command_answers_each_line_once_whatever_dies(
    mesh: LlmMesh, tmp_path: Path, count: int
) -> None:
    batch = Batch(mesh, tmp_path)
    batch.write([{"messages": said(n, count), "id": f"c{n}", "model": CHAT} for n in range(count)])
    arguments = ("in.jsonl", "--out", "out.jsonl", "--order", "done")
    process = batch.start(*arguments)

    def reached(part: float) -> None:
        until(lambda: len(batch.answers()) >= part * count, f"{part:.0%}", LONG_S)

    reached(0.1)
    lose_machine(mesh)
    reached(0.3)
    kill_orchestrator(mesh)
    reached(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    kill_orchestrator(mesh)
    process = batch.start(*arguments)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, err
    names = collections.Counter(row["id"] for row in batch.answers())
    assert names == collections.Counter(f"c{n}" for n in range(count))


@pytest.mark.parametrize("count", COUNTS)
def test_a_batch_of_the_door_answers_each_line_once_whatever_dies(
    mesh: LlmMesh, count: int
) -> None:
    line = {"method": "POST", "url": "/v1/chat/completions"}
    rows = [
        {**line, "custom_id": f"c{n}", "body": {"model": CHAT, "messages": said(n, count)}}
        for n in range(count)
    ]
    content = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    # what is away is tried again, as the client does of itself
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="any", max_retries=9) as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        def reached(part: float) -> None:
            def is_so() -> bool:
                counts = client.batches.retrieve(made.id).request_counts
                return bool(counts and counts.completed >= part * count)

            until(is_so, f"{part:.0%}", LONG_S)

        reached(0.1)
        lose_machine(mesh)
        reached(0.2)
        kill_part(mesh, "_web")
        reached(0.4)
        kill_orchestrator(mesh)
        reached(0.6)
        kill_part(mesh, "_broker")
        reached(0.7)
        kill_orchestrator(mesh)
        until(lambda: client.batches.retrieve(made.id).status == "completed", "its end", LONG_S)
        ended = client.batches.retrieve(made.id)
        assert ended.request_counts is not None
        assert ended.request_counts.to_dict() == {"total": count, "completed": count, "failed": 0}
        assert ended.error_file_id is None
        assert ended.output_file_id is not None
        answers = client.files.content(ended.output_file_id).text.splitlines()
    names = collections.Counter(json.loads(row)["custom_id"] for row in answers)
    assert names == collections.Counter(f"c{n}" for n in range(count))


def said(n: int, count: int) -> list[dict[str, str]]:
    words = 30 if count < 1000 else 3  # few lines are to take a while too
    return [{"role": "user", "content": f"say {words} words {n}"}]
