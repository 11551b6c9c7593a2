"""A disk that is really full: a small tmpfs under a real orchestrator, and under a worker."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.apps.children import Children, RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.nodes.client import Client, Task
from tests.end_to_end.processes import PATIENCE_S, until

if not sys.platform.startswith("linux"):
    pytest.skip("small disks are made with Linux's tmpfs", allow_module_level=True)

pytestmark = pytest.mark.slow

DISK_MB = 48
RESERVE_MB = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB; gone after the test."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={DISK_MB}m,mode=0755"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: a process that is just dying may still have a file open.
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(disk: Path, *, leave_bytes: int) -> Path:
    """Leave this much room; return the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while (free := shutil.disk_usage(disk).free) > leave_bytes:
            try:
                file.write(bytes(min(1 << 20, free - leave_bytes)))
            except OSError:
                break
    return ballast


class SmallMesh:
    """An orchestrator and a worker, each with a data folder of its own."""

    def __init__(self, config: Config, url: str, worker_url: str) -> None:
        self.config, self.url, self.worker_url = config, url, worker_url
        self.started: list[RunningCommand] = []

    def health(self) -> dict[str, Any]:
        """Return what /health says; nothing while nobody answers."""
        return rest(self.url, "/health")[1]

    def client(self) -> Client:
        client = Client(self.url, config=self.config)
        assert client.wait_connected(60)
        return client


@contextlib.contextmanager
def mesh(orchestrator: Path, worker: Path, *, reserve_mb: int) -> Iterator[SmallMesh]:
    web, broker, status = free_ports(3)
    name = f"disk-{web}"
    settings = {
        "D8_MESH": name,
        "D8_INTERFACES": "127.0.0.1",
        "D8_DATA_DIR": str(orchestrator),
        "D8_BROKER_PORT": str(broker),
        "D8_DISK_RESERVE_MB": str(reserve_mb),
        "FLASK_HOST": "127.0.0.1",
        "FLASK_PORT": str(web),
        "WORKER_STATUS_PORT": str(status),
        "ORCHESTRATOR_URL": "",
        "WORKER_ID": "",
    }
    url = f"http://127.0.0.1:{web}"
    with Children(settings) as children:
        worker_url = f"http://127.0.0.1:{status}"
        running = SmallMesh(Config(mesh=name, interfaces=("127.0.0.1",)), url, worker_url)
        arguments = ("worker", "--tasks", "tests.end_to_end.slow_tasks", "--slots", "2")
        own = {"D8_DATA_DIR": str(worker)}
        running.started = [
            children.start("orchestrator", "orchestrator"),
            children.start("worker", *arguments, settings=own),
        ]
        until(lambda: running.health().get("workers_online") == 1, "a mesh that stands")
        yield running


def rest(url: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Ask over REST; (0, {}) if nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    with contextlib.suppress(OSError, ValueError):
        try:
            answer = urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, json.load(answer)
    return 0, {}


def submit(url: str) -> tuple[int, str]:
    """Submit 200 KB for which there is no worker."""
    body = {"type": "nobody-does-this", "data": {"x": "y" * 200_000}}
    code, told = rest(url, "/api/tasks/submit", body)
    return code, str(told.get("task_id"))


def submit_until_refused(url: str) -> tuple[list[str], int]:
    """Return the ids of what was acknowledged, and the status of the first refusal."""
    taken: list[str] = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        code, task_id = submit(url)
        if code != 201:
            return taken, code
        taken.append(task_id)
    raise AssertionError("it never refused")


def check_queued(url: str, taken: list[str]) -> None:
    for task_id in taken:
        code, told = rest(url, f"/api/tasks/status/{task_id}")
        assert (code, told["status"]) == (200, "pending"), task_id


def test_a_full_disk_refuses_tasks_takes_results_and_recovers_by_itself(
    disk: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    with mesh(disk, tmp_path / "worker", reserve_mb=RESERVE_MB) as running:
        with running.client() as client:
            slow = client.submit("slow", {"seconds": 4, "trace": str(trace)})
            until(trace.exists, "the start of the slow task")
            ballast = fill_up(disk, leave_bytes=RESERVE_MB * 1_000_000 + 2_000_000)
            taken, code = submit_until_refused(running.url)
            assert code == 507
            assert taken
            assert running.health()["reason"] == "the disk is nearly full"
            # What runs comes to its end: its result gets in.
            assert slow.result(timeout=60)["output"] == {"done": True}
            ballast.unlink()
            until(lambda: running.health().get("status") == "healthy", "room is noticed")
            again = client.submit("slow", {"seconds": 0, "trace": str(trace)})
            assert again.result(timeout=60)["output"] == {"done": True}
            check_queued(running.url, taken)


def test_a_disk_filled_to_the_last_byte_loses_nothing_and_comes_back(
    disk: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    with mesh(disk, tmp_path / "worker", reserve_mb=0) as running:
        with running.client() as client:
            slow = client.submit("slow", {"seconds": 3, "trace": str(trace)})
            until(trace.exists, "the start of the slow task")
            ballast = fill_up(disk, leave_bytes=0)
            taken, code = submit_until_refused(running.url)  # the broker dies of it, and again
            assert code != 507  # no reserve was set: nothing warned of it
            ballast.unlink()
            until(lambda: running.health().get("status") == "healthy", "an orchestrator again")
            assert slow.result(timeout=60)["output"] == {"done": True}
            check_queued(running.url, taken)
        assert all(child.is_running for child in running.started)


def test_a_worker_with_a_full_disk_takes_no_more_and_says_so(disk: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with mesh(tmp_path / "orchestrator", disk, reserve_mb=1) as running:
        with running.client() as client:
            slow = client.submit("slow", {"seconds": 3, "trace": str(trace)})
            until(trace.exists, "the start of the slow task")
            ballast = fill_up(disk, leave_bytes=0)
            assert slow.result(timeout=60)["output"] == {"done": True}

            def outbox() -> object:
                """Return what it says of its outbox: None: all is well; "": it says nothing."""
                return rest(running.worker_url, "/health")[1].get("outbox", "")

            def is_left_waiting() -> bool:
                tasks.append(client.submit("slow", {"seconds": 0, "trace": str(trace)}))
                with contextlib.suppress(TimeoutError):
                    tasks[-1].result(timeout=2)
                    return False
                return True

            until(outbox, "the worker's word of its outbox")
            tasks: list[Task] = []
            until(is_left_waiting, "the worker taking no more")
            ballast.unlink()
            until(lambda: outbox() is None, "the worker noticing room")
            assert tasks[-1].result(timeout=60)["output"] == {"done": True}
