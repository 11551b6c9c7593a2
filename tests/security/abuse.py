"""A mesh to be abused: real processes, a healthy client beside, and exact counts of refusals.

One for each module of tests, for it takes some seconds to stand::

    @pytest.fixture(scope="module")
    def abused() -> Iterator[Abused]:
        with abused_mesh() as made:
            yield made

    def test_07_a_long_url_is_refused(abused: Abused) -> None:
        with abused.refused("rest", "http.url_too_long"):
            assert abused.http.ask("GET", "/" + "x" * 9000).status == 414

`Abused.refused` sees that exactly one more is counted for that reason and nothing else is, that no
task was made by it, and that tasks of the healthy client still come back after it. When the mesh is
taken down, every process must be the one that was started, and the logs without a traceback.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from bench.processes import Node, child_of
from d8mesh.apps.join import own_endpoint
from d8mesh.apps.orchestrators import ask
from d8mesh.nodes.client import Client
from tests.doors.llm_mesh import LlmMesh, llm_mesh
from tests.end_to_end.processes import PATIENCE_S, until
from tests.ollama_standin import OllamaStandin
from tests.security.neighbour import NEIGHBOUR_PRIORITY
from tests.security.raw_http import RawHttp

#: The surfaces that count, as `/health` names them.
SURFACES: Final = ("broker", "rest")
#: Tasks of the neighbour that have to come back after each abuse.
GOES_ON_TASKS: Final = 2
#: What a log never says unless something of ours has failed.
_FAILURES: Final = ("Traceback", "broker.fault", "request failed")
NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Abused:
    """The mesh, as who means it no good sees it, and as who looks after it does.

    Attributes:
        mesh: its processes.
        http: bytes to the REST port, where all doors are.
        broker: bytes to the broker's port.
    """

    def __init__(self, made: LlmMesh, neighbour: Neighbour) -> None:
        self.llm, self.mesh, self.neighbour = made, made.running, neighbour
        self.http = RawHttp(urlsplit(made.url).port or 0)
        self.broker = RawHttp(made.running.broker_port)
        self._pids = self._processes()

    # ---------------------------------------------------------------- looking

    def rejected(self) -> Counter[tuple[str, str]]:
        """Return what was refused so far, by (surface, reason)."""
        told = self.health()["rejected"]
        return Counter({(where, code): n for where in SURFACES for code, n in told[where].items()})

    def members(self) -> list[dict[str, Any]]:
        """Return the keys that the orchestrator knows, as `join list` does."""
        settings = replace(self.mesh.config, data_dir=str(self.mesh.folder))
        with Client(endpoint=own_endpoint(settings), config=settings) as client:
            assert client.wait_connected(60.0)
            return list(client.ask("members", {})["members"])

    def tasks(self) -> set[str]:
        """Return the newest tasks, but for those that the neighbour has submitted."""
        told = ask(self.mesh.url, "/api/tasks?limit=1000&order=newest")["tasks"]
        return {each["task_id"] for each in told if each["priority"] != NEIGHBOUR_PRIORITY}

    def health(self) -> dict[str, Any]:
        """Return what ``/health`` says, well or not."""
        return dict(self.http.ask("GET", "/health").json)

    def node(self, command: str) -> Node:
        """Return the process of this name: ``_broker`` or ``_web``."""
        return child_of(self.mesh.orchestrator.process.pid, command)

    def _processes(self) -> dict[str, int]:
        return {name: self.node(name).process.pid for name in ("_broker", "_web")}

    # ---------------------------------------------------------------- what is claimed

    @contextlib.contextmanager
    def refused(self, surface: str, code: str, *, times: int = 1) -> Iterator[None]:
        """See that exactly `times` more are refused there for this, and nothing else changes."""
        with self.refused_as({(surface, code): times}):
            yield

    @contextlib.contextmanager
    def refused_as(self, expected: Mapping[tuple[str, str], int]) -> Iterator[None]:
        """See that exactly these are counted, nothing else, and that the neighbour goes on."""
        before, tasks = self.rejected(), self.tasks()
        yield
        wanted = Counter(expected)
        # What the broker refuses is counted some time after it was sent.
        with contextlib.suppress(AssertionError):
            until(lambda: not wanted - (self.rejected() - before), "counted", PATIENCE_S / 2)
        self.goes_on()
        changed = self.rejected() - before
        assert changed == wanted, f"counted {dict(changed)}, expected {dict(wanted)}"
        made = self.tasks() - tasks
        assert not made, f"{made} tasks were made"

    @contextlib.contextmanager
    def refused_once(self) -> Iterator[None]:
        """See that one more request is refused, for whatever reason, and nothing else changes.

        What the broker refuses counts there too, for the same reason.
        """
        before, tasks = self.rejected(), self.tasks()
        yield
        self.goes_on()
        changed = self.rejected() - before
        (code,) = [code for (where, code), n in changed.items() if where == "rest" and n == 1]
        assert set(changed) <= {("rest", code), ("broker", code)}, changed
        assert changed["broker", code] <= 1
        assert not self.tasks() - tasks

    def goes_on(self) -> None:
        """See that tasks of the healthy client are still run by the healthy worker."""
        self.neighbour.goes_on()

    def check(self) -> None:
        """See that nothing has ended or failed."""
        self.goes_on()
        assert self._processes() == self._pids, "a process was started anew"
        for child in (self.mesh.orchestrator, *self.llm.workers, *self.mesh.workers):
            assert child.is_running, (child.name, list(child.lines))
        assert failures_in(self.mesh.folder) == []


def failures_in(folder: Path) -> list[str]:
    """Return the lines of logs below a data folder that tell of what was not expected."""
    return [
        f"{log.name}: {line}"
        for log in sorted(folder.rglob("*.log"))
        for line in log.read_text("utf-8", "replace").splitlines()
        if any(each in line for each in _FAILURES)
    ]


class Neighbour:
    """The healthy client, a process of its own (`tests.security.neighbour`)."""

    def __init__(self, url: str, settings: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.security.neighbour", url],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.done = 0
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def goes_on(self) -> None:
        """Wait until more of its tasks have come back."""
        wanted = self.done + GOES_ON_TASKS
        deadline = time.monotonic() + PATIENCE_S
        while self.done < wanted:
            assert self._process.poll() is None, self._said[-30:]
            assert time.monotonic() < deadline, f"the neighbour stands still: {self._said[-3:]}"
            time.sleep(0.01)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._reader.join(PATIENCE_S)
            self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                self._said.append(line.rstrip())
                if line.strip().isdigit():
                    self.done = int(line)


@contextlib.contextmanager
def abused_mesh(*machines: OllamaStandin, settings: Mapping[str, str] = NONE) -> Iterator[Abused]:
    """Start an orchestrator, a worker (for each of these machines, or a plain one), the neighbour.

    Args:
        settings: of every process, over those of the tests.
    """
    with llm_mesh(*machines, settings=settings) as made:
        if not machines:
            made.running.add_worker()
            made.running.await_workers(1)
        given = {
            "D8_MESH": made.running.config.mesh,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(made.running.folder),
            **settings,
        }
        neighbour = Neighbour(made.url, given)
        try:
            neighbour.goes_on()
            abused = Abused(made, neighbour)
            yield abused
            abused.check()
        finally:
            neighbour.close()
