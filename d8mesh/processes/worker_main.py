"""The command ``worker``: a worker with the built-in handlers, and its status page.

Ollama need not be there: the worker joins with what it can do, looks for it again and
again, and offers its task types and models as long as it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from d8mesh.backends import configured
from d8mesh.backends.backend import Availability, Backend
from d8mesh.backends.several import Several
from d8mesh.config import PORTS_END, STATUS_PORT_TRIES, Config
from d8mesh.core.protocol.addresses import LOOPBACK
from d8mesh.edge import data_folder, logs
from d8mesh.edge.logs import event
from d8mesh.edge.network import usable_addresses
from d8mesh.errors import ConfigError, D8Error
from d8mesh.handlers.echo import echo
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from d8mesh.handlers.llm import embedding_handlers, llm_handlers
from d8mesh.nodes.worker import Worker
from d8mesh.processes.console import ANY_ADDRESS, addresses_of
from d8mesh.processes.failure_console import FailureConsole
from d8mesh.processes.parent import end_with_parent
from d8mesh.processes.status import StatusServer
from d8mesh.processes.task_modules import load
from d8mesh.processes.worker_console import WorkerConsole

#: How often Ollama is looked for.
PROBE_EVERY_S: Final = 10.0
#: How long the threads beside the worker may take to end; a probe may just be waiting.
PROBE_END_S: Final = 0.5
#: Interfaces in the line that says where orchestrators are looked for.
MAX_INTERFACES: Final = 4
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
    console = WorkerConsole(worker.status, mesh=config.mesh, url=config.orchestrator_url)
    worker.on_notice(console.network_notice)

    def warn(text: str) -> None:
        event(_log, logging.WARNING, "llm", note=text)
        console.notice(text)

    with _status_page(config, worker, console):
        probe = Probe(worker, configured(config), on_change=console.backend, warn=warn)
        threads = [
            threading.Thread(target=probe.run, args=(stop,), name="probe", daemon=True),
            threading.Thread(target=console.run, args=(stop,), name="tell", daemon=True),
        ]

        def start_threads() -> None:
            console.begin(
                folder=config.data_dir,
                interfaces=_interfaces(config),
                wanted=config.worker_id,
                host=LOOPBACK if config.web_host in ANY_ADDRESS else addresses_of(config)[0],
            )
            for thread in threads:
                thread.start()

        if options.with_parent:
            end_with_parent(worker.request_stop)
        try:
            worker.run(on_start=start_threads, on_drain=console.drain)
        finally:
            stop.set()
            failures.close()
        for thread in threads:
            thread.join(PROBE_END_S)
    console.end()
    return 0


def _interfaces(config: Config) -> str:
    found = usable_addresses(config.interfaces)
    return ", ".join(f"{each.interface} ({each.address})" for each in found[:MAX_INTERFACES])


class Probe:
    """Keeps the offer of a worker in step with its language-model service.

    Args:
        worker: gets the handlers at once and offers them while the service answers.
        on_change: told what it offers, and for which task types, whenever that changes.
        warn: told by the handlers what people should know.
    """

    def __init__(
        self,
        worker: Worker,
        backend: Backend | Several,
        *,
        on_change: Callable[[Availability, tuple[str, ...]], None] = lambda seen, types: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._worker, self._backend = worker, backend
        self._on_change = on_change
        self._others = worker.task_types
        self._chats = llm_handlers(backend, warn=warn)
        self._embeds = embedding_handlers(backend, warn=warn)
        self._seen: Availability | None = None
        unseen = Availability(is_up=False, reason="not asked yet")
        worker.offer(self._others, backend=_body(backend.kind, unseen))
        for name, handler in (self._chats | self._embeds).items():
            worker.register(name, handler)

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. Thread: its own."""
        while not stop.is_set():
            self.look()
            stop.wait(PROBE_EVERY_S)

    def look(self) -> None:
        """Ask the service once, and offer what it has."""
        seen = self._backend.probe()
        if seen == self._seen:
            return
        self._seen = seen
        level = logging.WARNING if seen.reason or seen.warning else logging.INFO
        why = seen.reason or seen.warning
        models = len(seen.models)
        event(_log, level, "backend", up=seen.is_up, url=seen.url, models=models, why=why)
        chats = tuple(self._chats) if seen.is_up else ()
        embeds = tuple(self._embeds) if seen.embedders else ()
        self._worker.offer(
            (*self._others, *chats, *embeds),
            (*seen.models, *seen.embedders),
            backend=_body(self._backend.kind, seen),
            trouble=seen.reason,
        )
        self._on_change(seen, tuple(self._chats))


def _body(name: str, seen: Availability) -> dict[str, object]:
    body: dict[str, object] = {
        "name": name,
        "url": seen.url or None,
        "is_up": seen.is_up,
        "models": list(seen.models),
        "default_model": seen.default or None,
        "not_offered": dict(seen.unfit),
    }
    if seen.reason or seen.warning:
        body["reason"] = seen.reason or seen.warning
    return body


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


@contextlib.contextmanager
def _status_page(config: Config, worker: Worker, console: WorkerConsole) -> Iterator[None]:
    """Serve the status page; without a free port the worker works all the same."""
    ports = range(config.status_port, min(config.status_port + STATUS_PORT_TRIES, PORTS_END))
    hosts = config.allowed_hosts
    with contextlib.ExitStack() as at_end:
        try:
            server = StatusServer(config.web_host, ports, worker.status, allowed_hosts=hosts)
        except (OSError, D8Error) as error:
            event(_log, logging.WARNING, "status.none", error=str(error))
            console.notice(str(error))
        else:
            at_end.callback(server.close)
            worker.show_status_at(server.port)
            server.start()
        yield
