"""The command ``worker``: a worker with the built-in handlers, and its status page.

Ollama need not be there: the worker joins with what it can do, looks for it again and
again, and offers its task types and models as long as it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from d8mesh.backends import Availability, Backend
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.config import STATUS_PORT_TRIES, Config
from d8mesh.edge import data_folder, logs
from d8mesh.edge.logs import event
from d8mesh.edge.terminal import say
from d8mesh.errors import ConfigError, D8Error
from d8mesh.handlers.echo import echo
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from d8mesh.handlers.llm import llm_handlers
from d8mesh.nodes.worker import Worker
from d8mesh.program import command_name
from d8mesh.web.failure_console import FailureConsole
from d8mesh.web.parent import end_with_parent
from d8mesh.web.status import StatusServer
from d8mesh.web.task_modules import load
from d8mesh.words import tr, translated

#: How often Ollama is looked for.
PROBE_S: Final = 10.0
#: How often the first orchestrator is looked for, to say so.
LOOK_S: Final = 0.1
#: The same once it has joined one: an idle worker shall cost nothing.
LATER_LOOK_S: Final = 2.0
#: Without an orchestrator for this long, people are told once.
PATIENCE_S: Final = 10.0
DEFAULT_TYPE: Final = "deepseek"

_log: Final = logging.getLogger("d8mesh.worker")


def run(config: Config, options: argparse.Namespace) -> int:
    """Run a worker until it is told to stop; return the exit code.

    Raises:
        ConfigError: the worker type cannot be run, a module of ``--tasks`` not be loaded, or
            the data folder not be used.
        WorkerError: its folder or outbox cannot be used.
    """
    kind = str(options.type or config.worker_type or DEFAULT_TYPE)
    _refuse_cloud(kind, config)
    data = Path(config.data_dir)
    data_folder.require(data, "workers", "logs")
    logs.setup("worker", level=config.log_level, folder=data / "logs", to_stderr=False)
    worker = Worker(config=config, slots=options.slots, name=options.name, worker_type=kind)
    worker.register("echo", echo)
    worker.register("evolution_crossover", evolution_crossover)
    worker.register("evolution_mutation", evolution_mutation)
    for module in options.tasks or ():
        load(module, worker)
    failures = FailureConsole()
    worker.show_failures(failures.show)
    stop = threading.Event()
    backend = OllamaBackend(
        config.ollama_url,
        default_model=config.ollama_model,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
    )
    with _status_page(config, worker):
        probe = Probe(worker, backend, url=config.ollama_url)
        threads = [
            threading.Thread(target=probe.run, args=(stop,), name="probe", daemon=True),
            threading.Thread(target=_tell, args=(worker, config, stop), name="tell", daemon=True),
        ]

        def start_threads() -> None:
            if (line := renamed(config.worker_id, worker.worker_id)) is not None:
                say(line)
            for thread in threads:
                thread.start()

        if options.with_parent:
            end_with_parent(worker.request_stop)
        try:
            worker.run(on_start=start_threads)
        finally:
            stop.set()
            failures.close()
    say(tr("worker stopped"))
    return 0


class Probe:
    """Keeps the offer of a worker in step with its language-model service.

    Args:
        worker: gets the handlers at once and offers them while the service answers.
        backend: the service.
        url: where it is, for the status page.
        pause_s: between two looks.
    """

    def __init__(
        self, worker: Worker, backend: Backend, *, url: str, pause_s: float = PROBE_S
    ) -> None:
        self._worker, self._backend, self._url, self._pause_s = worker, backend, url, pause_s
        self._others = worker.task_types
        self._llm = llm_handlers(backend)
        self._seen: Availability | None = None
        worker.offer(self._others, backend=self._body(Availability(is_up=False, reason="")))
        for name, handler in self._llm.items():
            worker.register(name, handler)

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. Thread: its own."""
        while not stop.is_set():
            self.look()
            stop.wait(self._pause_s)

    def look(self) -> None:
        """Ask the service once, and offer what it has."""
        seen = self._backend.probe()
        if seen == self._seen:
            return
        self._seen = seen
        level = logging.INFO if seen.is_up else logging.WARNING
        event(_log, level, "backend", up=seen.is_up, models=len(seen.models), why=seen.reason)
        types = (*self._others, *self._llm) if seen.is_up else self._others
        self._worker.offer(types, seen.models, backend=self._body(seen))

    def _body(self, seen: Availability) -> dict[str, object]:
        body: dict[str, object] = {
            "name": "ollama",
            "url": self._url,
            "is_up": seen.is_up,
            "models": list(seen.models),
        }
        if not seen.is_up:
            body["reason"] = seen.reason or "not asked yet"
        return body


def renamed(wanted: str | None, worker_id: str) -> str | None:
    """Return what to say of a worker that could not get the id it was given."""
    if not wanted or worker_id == wanted:
        return None
    return tr(
        "another worker on this machine is called {wanted}: this one is {id}",
        wanted=wanted,
        id=worker_id,
    )


def renamed_in_mesh(before: str, worker_id: str) -> str:
    """Return what to say of a worker whose id another machine's has already."""
    return tr(
        "another worker of the mesh is called {before}: this one goes on as {id}",
        before=before,
        id=worker_id,
    )


def _refuse_cloud(kind: str, config: Config) -> None:
    variables = {
        "groq": ("GROQ_API_KEY", config.groq_api_key),
        "gemini": ("GEMINI_API_KEY", config.gemini_api_key),
    }
    if kind not in variables:
        return
    variable, key = variables[kind]
    state = f"{variable} is {'set' if key else 'not set'}"
    raise ConfigError(
        f"--type {kind}: this d8mesh has no backend for it yet ({state}). Use --type deepseek "
        "with a local Ollama, or let a polling worker of the older system register over REST"
    )


def _tell(worker: Worker, config: Config, stop: threading.Event) -> None:
    """Say on standard output which orchestrators are found, and through what."""
    say(
        tr(
            "worker {id}: looking for orchestrators of mesh {mesh}",
            id=worker.worker_id,
            mesh=config.mesh,
        )
    )
    say(tr("data in {folder}", folder=config.data_dir))
    told: dict[str, str] = {}
    refused: set[str] = set()
    waited_s, called = 0.0, worker.worker_id
    while not stop.wait(LATER_LOOK_S if told else LOOK_S):
        status: Any = worker.status()
        if worker.worker_id != called:
            say(renamed_in_mesh(called, worker.worker_id))
            called = worker.worker_id
        for each in status["orchestrators"]:
            broker_id, endpoint = each["broker_id"], each["endpoint"]
            if endpoint and told.get(broker_id) != endpoint:
                told[broker_id] = endpoint
                say(_joined(worker.worker_id, broker_id, endpoint))
        for why in set(status["refused"]) - refused:
            refused.add(why)
            say(tr("an orchestrator refuses this worker: {why}", why=translated(why)))
        waited_s += LOOK_S
        if not told and PATIENCE_S <= waited_s < PATIENCE_S + LOOK_S:
            say(
                tr(
                    "no orchestrator found yet: looking on. Is one running (`{program} "
                    "orchestrator`), in the same mesh and network? ORCHESTRATOR_URL names one",
                    program=command_name(),
                )
            )


def _joined(worker_id: str, broker_id: str, endpoint: str) -> str:
    where = {"id": worker_id, "orchestrator": broker_id, "endpoint": endpoint}
    if not endpoint.startswith("http"):
        return tr("worker {id} joined {orchestrator} at {endpoint}", **where)
    return tr(
        "worker {id} joined {orchestrator} at {endpoint} over HTTP: its ZeroMQ port cannot be "
        "reached; open it for full speed",
        **where,
    )


@contextlib.contextmanager
def _status_page(config: Config, worker: Worker) -> Iterator[None]:
    """Serve the status page; without a free port the worker works all the same."""
    ports = range(config.status_port, config.status_port + STATUS_PORT_TRIES)
    server: StatusServer | None = None
    try:
        server = StatusServer(
            config.web_host, ports, worker.status, allowed_hosts=config.allowed_hosts
        )
    except (OSError, D8Error) as error:
        event(_log, logging.WARNING, "status.none", error=str(error))
    if server is not None:
        worker.show_status_at(server.port)
        if hasattr(server, "start"):
            server.start()
    try:
        yield
    finally:
        if server is not None:
            server.close()
