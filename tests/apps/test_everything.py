"""Everything on this machine: one command, two processes, one end."""

from __future__ import annotations

import socket
from pathlib import Path

from d8mesh.apps.children import Children
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from tests.end_to_end.processes import until

PATIENCE_S = 90.0


def settings(folder: Path) -> dict[str, str]:
    rest, broker, status = free_ports(3)
    return {
        "D8_MESH": f"up-{rest}",
        "D8_DATA_DIR": str(folder),
        "FLASK_HOST": "127.0.0.1",
        "FLASK_PORT": str(rest),
        "D8_BROKER_PORT": str(broker),
        "WORKER_STATUS_PORT": str(status),
    }


def test_an_orchestrator_and_a_worker_come_and_go_together(tmp_path: Path) -> None:
    given = settings(tmp_path)
    url = f"http://127.0.0.1:{given['FLASK_PORT']}"
    with Children(given) as children:
        child = children.start("up", "up")
        for what in ("[worker] worker", "joined", "[orchestrator]"):
            until(lambda: any(what in line for line in child.lines), what)  # noqa: B023
        assert ask(url, "/health")["workers_online"] == 1
        child.close_input()
        assert child.wait(PATIENCE_S) == 0
        stopping = [line for line in child.lines if line.startswith("stopping: the worker ")]
        assert len(stopping) == 1


def test_if_one_cannot_start_the_other_ends_and_the_code_says_so(tmp_path: Path) -> None:
    given = settings(tmp_path)
    with (
        socket.create_server(("127.0.0.1", int(given["FLASK_PORT"]))),
        Children(given) as children,
    ):
        child = children.start("up", "up")
        assert child.wait(PATIENCE_S) == 1
        assert any("the orchestrator has ended" in line for line in child.lines)
