"""Two meshes that differ in one thing, asked the same in turn within one run.

Each is a broker, two workers and a client, every one a process of its own, on loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.findings import Findings, percentile, ratios, rotated
from bench.plan import Plan
from bench.processes import Node, node
from bench.progress import say
from bench.raw_loop import HOME
from d8mesh.apps.demo import free_ports
from d8mesh.errors import D8Error

WORKERS: Final = 2
#: Payload bytes -> (label, tasks of a turn of the full run).
PAYLOADS: Final = {64: ("64 B", 12_000), 4096: ("4 KB", 3000), 262_144: ("256 KB", 60)}
#: A round goes from one side to the other so often: what else the machine does meets both.
TURNS: Final = 4
ONE_TURNS: Final = 30
ONE_IN_FLIGHT: Final = 1200
ONE_BYTES: Final = 64
WARM_UP: Final = 2000
END_S: Final = 10.0

RATES: Final = "Tasks per second"
CPU: Final = "Processor time per task, all processes"
BY_PROCESS: Final = "Processor time per task of 64 B, by process"
ONE: Final = "One task in flight"
THROUGHPUT: Final = "tasks per second"
COST: Final = "processor time per task"
LATENCY: Final = "one in flight"


@dataclass(frozen=True, slots=True)
class Kind:
    """What one of the two is: its name, its settings, and a module that runs the others."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    script: str = ""


@dataclass(slots=True)
class _Side:
    name: str
    client: subprocess.Popen[str]
    nodes: list[Node]

    def ask(self, what: str, count: int, size: int) -> Any:
        """Have the client do something, and return what it tells."""
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(f"{what} {count} {size}\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time of each process so far."""
        return {each.name: each.exact_cpu_s() for each in self.nodes}


def compare(found: Findings, plan: Plan, one: Kind, other: Kind, title: str) -> None:
    """Measure both in turn: rates and processor time by size of payload, and one in flight.

    Args:
        title: of the table that says what `one` is over `other`.
    """
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="d8-bench-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(made))
        sides = [
            stack.enter_context(_side(each, folder / str(n))) for n, each in enumerate((one, other))
        ]
        for side in sides:
            side.ask("many", plan.tasks(WARM_UP), ONE_BYTES)
            side.ask("one", plan.tasks(ONE_IN_FLIGHT // ONE_TURNS), ONE_BYTES)
        for turn in range(plan.rounds):
            say(f"{one.name}, {other.name}: round {turn + 1}")
            for size in PAYLOADS:
                _throughput(found, plan, sides, size)
            _latency(found, plan, sides)
    over = found.table(title, "×")
    for row, name in ((THROUGHPUT, RATES), (COST, CPU), (LATENCY, ONE)):
        table = found.table(name, "")
        for column in table.columns:
            tops, bottoms = table.samples(one.name, column), table.samples(other.name, column)
            over.cells[row, column] = ratios(tops, bottoms)


def _throughput(found: Findings, plan: Plan, sides: list[_Side], size: int) -> None:
    label, tasks = PAYLOADS[size]
    count = plan.tasks(tasks, least=50)
    seconds = {side.name: 0.0 for side in sides}
    spent: dict[str, dict[str, float]] = {side.name: {} for side in sides}
    for turn in range(TURNS):
        for side in rotated(sides, turn):
            before = side.cpu_s()
            seconds[side.name] += side.ask("many", count, size)
            for name, cpu_s in side.cpu_s().items():
                spent[side.name][name] = spent[side.name].get(name, 0.0) + cpu_s - before[name]
    done = TURNS * count
    for side in sides:
        found.table(RATES, "tasks/s").add(side.name, label, done / seconds[side.name])
        cpu_us = {name: cpu_s / done * 1e6 for name, cpu_s in spent[side.name].items()}
        found.table(CPU, "µs").add(side.name, label, sum(cpu_us.values()))
        if size == min(PAYLOADS):
            for name, each in cpu_us.items():
                found.table(BY_PROCESS, "µs").add(name, side.name, each)


def _latency(found: Findings, plan: Plan, sides: list[_Side]) -> None:
    count = plan.tasks(ONE_IN_FLIGHT // ONE_TURNS, least=1)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(ONE_TURNS):
        for side in rotated(sides, turn):
            times[side.name] += side.ask("one", count, ONE_BYTES)
    table = found.table(ONE, "µs")
    for name, seconds in times.items():
        table.add(name, "p50", statistics.median(seconds) * 1e6)
        table.add(name, "p10", percentile(seconds, 0.1) * 1e6)


# ------------------------------------------------------------------------------ processes


@contextlib.contextmanager
def _side(kind: Kind, folder: Path) -> Iterator[_Side]:
    """Run one of the two."""
    rest, port, status = free_ports(3)
    given = os.environ | {
        "D8_NO_ENV_FILE": "1",
        "D8_MESH": f"bench-{secrets.token_hex(3)}",
        "D8_INTERFACES": "127.0.0.1",
        "D8_DATA_DIR": str(folder),
        "D8_BROKER_PORT": str(port),
        "FLASK_HOST": "127.0.0.1",
        "FLASK_PORT": str(rest),
        "WORKER_STATUS_PORT": str(status),
        "ORCHESTRATOR_URL": "",
        "WORKER_ID": "",
        "D8_OLLAMA_SERVE": "0",
        "D8_QUEUE_BYTES": "100000000000",
        **kind.settings,
    }
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[str]:
            before = [kind.script] if kind.script else []
            process = subprocess.Popen(
                [sys.executable, "-m", *before, *command],
                env=given,
                cwd=HOME,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, process)
            return process

        broker = start("d8mesh", "_broker")
        told = json.loads(_line(broker, "the broker"))
        workers = [start("d8mesh", "worker") for _ in range(WORKERS)]
        place = f"tcp://127.0.0.1:{told['port']}?key={told['server_key']}"
        client = start("bench.inside.ask_client", place)
        if _line(client, "the client") != "up\n":
            raise D8Error(f"{kind.name}: the client did not reach its broker")
        nodes = [node(broker.pid, "broker"), node(client.pid, "client")]
        nodes += [node(each.pid, f"worker {n + 1}") for n, each in enumerate(workers)]
        yield _Side(kind.name, client, nodes)


def _line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise D8Error(f"{name} ended: exit code {process.wait(END_S)}")
    return line


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
