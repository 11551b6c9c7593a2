"""The demo: an orchestrator and two workers as processes that find each other, at work.

It uses a mesh name, ports, a folder and the loopback interface of its own, so that it runs
beside a real mesh and on a machine without a network, and it ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.request import ProxyHandler, Request, build_opener

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from d8mesh.apps.children import Children, RunningCommand
from d8mesh.apps.orchestrators import ask
from d8mesh.apps.prompts import PROMPTS, PromptModel, ask_all, model_for
from d8mesh.apps.status import counts_text, workers_table
from d8mesh.config import Config
from d8mesh.edge.terminal import tell
from d8mesh.edge.waits import join
from d8mesh.errors import BrokerUnavailableError, D8Error
from d8mesh.nodes.client import Client
from d8mesh.words import escaped

WORKERS: Final = 2
ECHOES: Final = 100_000
MUTATIONS: Final = 5_000
REST_TASKS: Final = 20
#: How long the processes may take to start and find each other.
START_S: Final = 60.0
#: How long a part of the work may take: an LLM on a small machine is slow.
WORK_S: Final = 300.0
REFRESH_S: Final = 0.25
#: Below those that Linux (32768 on), macOS and Windows give to connections that go out.
_UNGIVEN_PORTS: Final = range(20_000, 32_000)


@dataclass(slots=True)
class DemoPart:
    """One part of the demo's work, and how far it is."""

    name: str
    total: int
    done: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Scene:
    """What the live picture shows."""

    url: str
    parts: list[DemoPart] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the demo; exit code 0 when every task brought its result."""
    console = Console(highlight=False)
    model = PromptModel(why_not="--no-llm") if options.no_llm else model_for(config, tell)
    with tempfile.TemporaryDirectory(prefix="d8-demo-", ignore_cleanup_errors=True) as folder:
        rest_port, broker_port, status_port = free_ports(3)
        mesh = f"demo-{secrets.token_hex(3)}"
        settings = {
            "D8_MESH": mesh,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": folder,
            "D8_BROKER_PORT": str(broker_port),
            "FLASK_HOST": "127.0.0.1",
            "FLASK_PORT": str(rest_port),
            "WORKER_STATUS_PORT": str(status_port),
            "ORCHESTRATOR_URL": "",
            "WORKER_ID": "",
            **dict.fromkeys(("D8_JOIN", "D8_MESH_KEY", "D8_TLS", "D8_TOKEN"), ""),
        }
        scene = Scene(f"http://127.0.0.1:{rest_port}")
        with Children(settings) as children:
            started = time.monotonic()
            running = [children.start("orchestrator", "orchestrator")]
            running += [children.start(f"worker {n + 1}", "worker") for n in range(WORKERS)]
            console.print(
                f"Starting an orchestrator and {WORKERS} workers; they find each other by mDNS "
                f"(mesh {mesh}) …"
            )
            _wait_for_workers(scene, running)
            took_s = time.monotonic() - started
            console.print(f"All there after {took_s:.1f} s. Now some work:")
            mine = Config(mesh=mesh, interfaces=("127.0.0.1",), data_dir=folder)
            with Client(config=mine) as client:
                _work(console, scene, client)
                is_answered = not model.name or ask_all(client, model, within_s=WORK_S) == len(
                    PROMPTS
                )
            _summary(console, scene, took_s)
            if not model.name:
                console.print(Text(escaped(f"  (no prompts were run: {model.why_not})")))
    return 0 if is_answered else 1


# ------------------------------------------------------------------------------ the work


def _work(console: Console, scene: Scene, client: Client) -> None:
    """Do all parts, with a live picture on a terminal and plain lines elsewhere."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(console, scene, stop), daemon=True)
    watcher.start()
    try:
        if not client.wait_connected(START_S):
            raise BrokerUnavailableError("the client did not find the demo's orchestrator")
        _part(scene, "REST: submit and poll", REST_TASKS, lambda part: _rest(scene, part))
        _part(scene, "client: echo", ECHOES, lambda part: _echo(client, part))
        _part(scene, "client: mutations", MUTATIONS, lambda part: _mutate(client, part))
    finally:
        stop.set()
        join(watcher)


def _part(scene: Scene, name: str, total: int, work: Callable[[DemoPart], None]) -> None:
    part = DemoPart(name, total)
    scene.parts.append(part)
    started = time.monotonic()
    work(part)
    part.seconds = time.monotonic() - started


def _rest(scene: Scene, part: DemoPart) -> None:
    """Submit and poll as any existing D8 client does."""
    ids = []
    for number in range(part.total):
        body = {"type": "echo", "data": {"text": f"hello {number}"}, "priority": 8}
        ids.append(_submit(scene.url, body)["task_id"])
    until = time.monotonic() + WORK_S
    for number, task_id in enumerate(ids):
        while (status := ask(scene.url, f"/api/tasks/status/{task_id}"))["status"] != "completed":
            if status["status"] == "failed" or time.monotonic() > until:
                raise D8Error(f"task {task_id} did not succeed: {status}")
            time.sleep(0.02)
        if status["result"]["output"] != {"text": f"hello {number}"}:
            raise D8Error(f"task {task_id} brought a wrong result: {status['result']}")
        part.done += 1


def _echo(client: Client, part: DemoPart) -> None:
    for number, result in enumerate(
        client.map("echo", ({"n": n} for n in range(part.total)), timeout=WORK_S)
    ):
        if result["output"] != {"n": number}:
            raise D8Error(f"echo {number} brought a wrong result: {result}")
        part.done += 1


def _mutate(client: Client, part: DemoPart) -> None:
    genome = {"learning_rate": 0.1, "layers": 4, "name": "ada", "limits": {"low": -1.5, "high": 9}}
    data = {"genome": genome, "mutation_rate": 0.5}
    for result in client.map("evolution_mutation", [data] * part.total, timeout=WORK_S):
        if result["genome"].keys() != genome.keys():
            raise D8Error(f"a mutation lost a key: {result}")
        part.done += 1


# --------------------------------------------------------------------------- the picture


def _watch(console: Console, scene: Scene, stop: threading.Event) -> None:
    if not console.is_terminal:
        told: set[str] = set()
        is_over = False
        while not is_over:
            is_over = stop.wait(REFRESH_S)
            _look(scene)
            for part in list(scene.parts):
                if part.done == part.total and part.name not in told:
                    told.add(part.name)
                    console.print(f"  {part.name}: {part.done} done")
        return
    with Live(_picture(scene), console=console, refresh_per_second=4) as live:
        while not stop.wait(REFRESH_S):
            _look(scene)
            live.update(_picture(scene))
        _look(scene)
        live.update(_picture(scene))


def _look(scene: Scene) -> None:
    try:
        scene.stats = ask(scene.url, "/api/stats")
        scene.workers = ask(scene.url, "/api/workers/list")["workers"]
    except (OSError, KeyError):
        return  # the next look tells


def _picture(scene: Scene) -> Panel:
    progress = Progress(TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    for part in list(scene.parts):
        progress.add_task(part.name, total=part.total, completed=part.done)
    return Panel(
        Group(_table(scene.workers), Text(counts_text(scene.stats)), progress),
        title=f"d8mesh demo at {scene.url}",
    )


def _table(workers: list[dict[str, Any]]) -> Table:
    columns, rows = workers_table(workers)
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))  # what is in it is no markup
    return table


def _summary(console: Console, scene: Scene, took_s: float) -> None:
    _look(scene)
    tasks = scene.stats.get("tasks", {})
    console.print(
        f"\nDone: {tasks.get('completed', 0)} tasks completed, {tasks.get('failed', 0)} failed; "
        f"the mesh stood {took_s:.1f} s after the start."
    )
    for part in scene.parts:
        rate = part.total / part.seconds if part.seconds else 0.0
        line = f"  {part.name}: {part.total} in {part.seconds:.2f} s ({rate:,.0f}/s)"
        console.print(line)
    for worker in scene.workers:
        line = f"  {worker['worker_id']}: {worker['tasks_completed']} tasks"
        console.print(Text(escaped(line)))


# --------------------------------------------------------------------------- starting up


def _wait_for_workers(scene: Scene, running: list[RunningCommand]) -> None:
    """Wait until all workers are listed.

    Raises:
        D8Error: a process ended, or it took too long; what the processes said is printed.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        _look(scene)
        if sum(worker["status"] != "offline" for worker in scene.workers) >= WORKERS:
            return
        ended = next((child for child in running if not child.is_running), None)
        if ended is not None:
            said = " / ".join(ended.lines) or "nothing"
            raise D8Error(f"the {ended.name} ended with {ended.process.returncode}: {said}")
        time.sleep(0.05)
    for child in running:
        for line in child.lines:
            tell(f"[{child.name}] {line}")
    raise D8Error(f"the workers did not join within {START_S:.0f} s")


def _submit(url: str, body: dict[str, object]) -> Any:
    request = Request(
        url + "/api/tasks/submit",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return json.loads(answer.read())


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, of those that no connection is given meanwhile."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(_UNGIVEN_PORTS)
            with contextlib.suppress(OSError):  # it is taken
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports
