"""A worker written from the protocol document alone joins the mesh and works."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.errors import TaskFailedError
from d8mesh.nodes.broker import Broker
from d8mesh.nodes.client import Client

WORKER = Path(__file__).with_name("worker.py")
MAX_LINES = 150


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    config = Config(mesh="stranger", interfaces=("127.0.0.1",), broker_port=42_010)
    broker = Broker(config, tmp_path)
    running = threading.Thread(target=broker.run)
    running.start()
    endpoint, key = f"tcp://127.0.0.1:{broker.ready.port}", broker.ready.server_key
    command = [sys.executable, str(WORKER), endpoint, key, config.mesh]
    stranger = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline().startswith("joined as stranger-")
        with Client(endpoint=f"{endpoint}?key={key}", config=config) as client:
            yield client
    finally:
        stranger.kill()
        stranger.wait()
        assert stranger.stdout is not None
        stranger.stdout.close()
        broker.stop()
        running.join()


def test_it_runs_tasks_and_reports_failures(client: Client) -> None:
    results = list(client.map("reverse", [{"text": f"abc{n}"} for n in range(200)], timeout=60))
    assert [result["output"] for result in results] == [f"{_turn(n)}cba" for n in range(200)]
    failing = client.submit("fail", {}, max_attempts=1)
    with pytest.raises(TaskFailedError, match="this one always fails"):
        failing.result(60)
    hopeless = client.submit("reverse", {"text": 5})
    with pytest.raises(TaskFailedError, match="cannot do this"):
        hopeless.result(60)
    assert hopeless.status()["attempts"] == 1


def test_it_streams_to_who_listens(client: Client) -> None:
    later = client.submit("reverse", {"text": "hello"}, run_at=time.time() + 1.5)
    assert "".join(later.stream(timeout=30)) == "olleh"
    assert later.result(30)["output"] == "olleh"


def test_it_is_short() -> None:
    assert len(WORKER.read_text("utf-8").splitlines()) < MAX_LINES


def _turn(number: int) -> str:
    return str(number)[::-1]
