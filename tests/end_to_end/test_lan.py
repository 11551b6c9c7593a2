"""Three machines on a LAN with nothing configured: who finds whom, how fast, and through what."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.hosts import NETWORK, Host, Lan, available
from tests.end_to_end.processes import until

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

ROOT = Path(__file__).resolve().parents[2]
#: The promise is 2 s; the bound leaves room for a machine that does other things too.
#: `python -m tests.end_to_end.test_lan` prints the figures themselves.
JOIN_BOUND_S = 10.0
#: The promise is 20 s; it takes about 6.
MOVE_BOUND_S = 40.0

FIRST_TASK = """
import json, sys, time
from d8mesh import Client
from d8mesh.config import Config
url = sys.argv[1] or None
with Client(url, config=Config(mesh=sys.argv[2], data_dir=sys.argv[3])) as client:
    client.wait_connected(60)
    print("connected", flush=True)
    for line in sys.stdin:
        task = client.submit("echo", {"line": line.strip()})
        result = task.result(60)
        print(json.dumps({"at": time.monotonic(), "output": result["output"]}), flush=True)
"""


@dataclass
class Machines:
    lan: Lan
    folder: Path
    mesh: str = "lan-test"
    logs: list[Path] = field(default_factory=list)

    def start(self, host: Host, *arguments: str, **settings: str) -> Path:
        """Start a d8mesh command there with its own folder; return the file it writes to."""
        home = self.folder / f"{host.namespace}-{arguments[0]}-{len(self.logs)}"
        home.mkdir()
        log = home / "out"
        self.logs.append(log)
        env = {
            "PYTHONPATH": str(ROOT),
            "D8_NO_ENV_FILE": "1",
            "D8_MESH": self.mesh,
            "D8_DATA_DIR": str(home),
            "D8_INTERFACES": "",
            "WORKER_ID": "",
            **settings,
        }
        with log.open("w", encoding="utf-8") as out:
            host.popen(
                [sys.executable, "-m", "d8mesh", *arguments], env=env, stdout=out, stderr=out
            )
        return log

    def client(self, host: Host, url: str = "") -> Any:
        process = host.popen(
            [sys.executable, "-c", FIRST_TASK, url, self.mesh, str(self.folder / "client")],
            env={"PYTHONPATH": str(ROOT)},
            stdin=-1,
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "connected"
        return process

    def health(self, host: Host) -> dict[str, Any]:
        code = (
            "import json,sys,urllib.request as u\n"
            "print(u.urlopen('http://127.0.0.1:7001/health', timeout=5).read().decode())"
        )
        done = host.run([sys.executable, "-c", code])
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        return {}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Lan(hosts=3) as lan:
        yield Machines(lan, tmp_path)


def ask_once(process: Any, text: str) -> float:
    """Have the client submit a task; return when its result came (monotonic)."""
    process.stdin.write(text + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert answer["output"] == {"line": text}
    return float(answer["at"])


def worker_start_to_first_task(machines: Machines) -> float:
    boss, worker, user = machines.lan.hosts
    machines.start(boss, "orchestrator")
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    client = machines.client(user)
    started = time.monotonic()
    machines.start(worker, "worker")
    return ask_once(client, "first") - started


def healthy_to_first_task(machines: Machines) -> float:
    boss, worker, user = machines.lan.hosts
    log = machines.start(worker, "worker")
    until(lambda: "looking" in log.read_text("utf-8"), "a worker that waits")
    machines.start(boss, "orchestrator")
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    healthy = time.monotonic()
    client = machines.client(user)
    return ask_once(client, "first") - healthy


def new_address_to_next_task(machines: Machines, *, is_shut: bool = False) -> float:
    boss, worker, user = machines.lan.hosts
    machines.start(boss, "orchestrator")
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    if is_shut:
        boss.block_tcp(7010, 7019)
    machines.start(worker, "worker")
    client = machines.client(user)
    ask_once(client, "before")
    moved = time.monotonic()
    boss.change_address(f"{NETWORK}.50")
    return ask_once(client, "after") - moved


def test_a_fresh_worker_finds_the_orchestrator_by_itself(machines: Machines) -> None:
    assert worker_start_to_first_task(machines) < JOIN_BOUND_S


def test_waiting_workers_find_a_fresh_orchestrator(machines: Machines) -> None:
    assert healthy_to_first_task(machines) < JOIN_BOUND_S


@pytest.mark.slow
@pytest.mark.parametrize("is_shut", [False, True], ids=["zeromq", "7001 only"])
def test_worker_and_client_follow_the_orchestrator_to_a_new_address(
    machines: Machines, is_shut: bool
) -> None:
    assert new_address_to_next_task(machines, is_shut=is_shut) < MOVE_BOUND_S


def test_one_that_listens_on_loopback_serves_its_machine_and_nobody_else(
    machines: Machines,
) -> None:
    boss, other, user = machines.lan.hosts
    machines.start(boss, "orchestrator", FLASK_HOST="127.0.0.1")
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    elsewhere = machines.start(other, "worker")
    beside = machines.start(boss, "worker")
    until(lambda: "joined" in beside.read_text("utf-8"), "a worker beside it that joins")
    code = (
        "import socket,sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))))"
    )
    for port in (7001, 7010):
        done = user.run([sys.executable, "-c", code, boss.address, str(port)])
        assert done.returncode == errno.ECONNREFUSED, port
    assert "joined" not in elsewhere.read_text("utf-8")


def test_one_that_listens_on_one_address_is_found_there(machines: Machines) -> None:
    boss, other, _ = machines.lan.hosts
    machines.start(boss, "orchestrator", FLASK_HOST=boss.address)
    beside, elsewhere = machines.start(boss, "worker"), machines.start(other, "worker")
    for log in (beside, elsewhere):
        until(lambda: "joined" in log.read_text("utf-8"), "a worker that joins")  # noqa: B023
    assert f"tcp://{boss.address}:7010" in elsewhere.read_text("utf-8")


def test_with_a_key_a_url_leads_who_has_it_to_the_orchestrator(machines: Machines) -> None:
    boss, knows, does_not = machines.lan.hosts
    key = "the-key-of-this-mesh-4711"
    machines.start(boss, "orchestrator", D8_MESH_KEY=key)
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    by_url = {"ORCHESTRATOR_URL": f"http://{boss.address}:7001", "D8_INTERFACES": "no-card"}
    stranger = machines.start(does_not, "worker", **by_url)
    friend = machines.start(knows, "worker", **by_url, D8_MESH_KEY=key)
    until(lambda: "joined" in friend.read_text("utf-8"), "a worker with the key that joins")
    assert "joined" not in stranger.read_text("utf-8")


@pytest.mark.slow
def test_with_only_7001_open_all_work_and_move_up_when_7010_opens(machines: Machines) -> None:
    boss, worker, user = machines.lan.hosts
    machines.start(boss, "orchestrator")
    until(lambda: machines.health(boss).get("status") == "healthy", "a healthy orchestrator")
    boss.block_tcp(7010, 7019)
    log = machines.start(worker, "worker")
    client = machines.client(user, f"http://{boss.address}:7001")
    ask_once(client, "through 7001")
    until(lambda: "http://" in log.read_text("utf-8"), "a worker that says it uses HTTP")
    boss.unblock_tcp(7010, 7019)
    until(lambda: "tcp://" in log.read_text("utf-8").rpartition("http://")[2], "ZeroMQ again")
    ask_once(client, "through 7010")


if __name__ == "__main__":
    import tempfile

    for measure in (worker_start_to_first_task, healthy_to_first_task, new_address_to_next_task):
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder, Lan(hosts=3) as lan:
                print(f"{measure.__name__}: {measure(Machines(lan, Path(folder))):.2f} s")
