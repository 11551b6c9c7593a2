"""The command ``worker``: a worker with the built-in handlers, and its status page.

LLM services need not be there: see `llm_services`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from d8mesh.backends import configured, ollama_at
from d8mesh.config import PORTS_END, STATUS_PORT_TRIES, Config
from d8mesh.core.protocol.addresses import LOOPBACK
from d8mesh.edge import data_folder, logs
from d8mesh.edge.garbage import collect_seldom
from d8mesh.edge.logs import event
from d8mesh.edge.network import usable_addresses
from d8mesh.errors import ConfigError, D8Error
from d8mesh.handlers.echo import echo
from d8mesh.handlers.genetic import evolution_crossover, evolution_mutation
from d8mesh.nodes.worker import Worker
from d8mesh.processes.announced_ollamas import AnnouncedOllamas
from d8mesh.processes.closed import guard_of, refuse_public
from d8mesh.processes.console import ANY_ADDRESS, addresses_of
from d8mesh.processes.llm_services import LlmServices
from d8mesh.processes.model_fetch import ModelFetch
from d8mesh.processes.ollama_serve import OllamaServe
from d8mesh.processes.parent import end_with_parent
from d8mesh.processes.patient_console import PatientConsole
from d8mesh.processes.services_console import ServicesConsole
from d8mesh.processes.status import StatusServer
from d8mesh.processes.task_modules import load
from d8mesh.processes.worker_console import WorkerConsole, say_wrapped

#: How long the threads beside the worker may take to end; one may just be waiting.
BESIDE_END_S: Final = 0.5
#: Interfaces in the line that says where orchestrators are looked for.
MAX_INTERFACES: Final = 4
DEFAULT_TYPE: Final = "deepseek"
#: Workers of these types have services of one account alone.
ACCOUNT_TYPES: Final = ("groq", "gemini")

_log: Final = logging.getLogger("d8mesh.worker")


def run(config: Config, options: argparse.Namespace) -> int:
    """Run a worker until it is told to stop; return the exit code.

    Raises:
        ConfigError: the worker type cannot be run, a module of ``--tasks`` not be loaded, or
            the data folder not be used.
        WorkerError: its folder or outbox cannot be used.
    """
    kind = str(options.type or config.worker_type or DEFAULT_TYPE)
    _require_key(kind, config)
    refuse_public(config)
    config = replace(config, worker_type=kind)
    data = Path(config.data_dir)
    data_folder.require(data, "workers", "logs")
    logs.setup("worker", level=config.log_level, folder=data / "logs", to_stderr=False)
    worker = Worker(config=config, slots=options.slots, name=options.name, worker_type=kind)
    worker.register("echo", echo)
    worker.register("evolution_crossover", evolution_crossover)
    worker.register("evolution_mutation", evolution_mutation)
    for module in options.tasks or ():
        load(module, worker)
    if not options.tasks:  # of what others' handlers make nothing is known
        collect_seldom()
    with contextlib.ExitStack() as at_end:
        failures, lines = PatientConsole(), PatientConsole(say_wrapped)
        at_end.callback(lines.close)
        at_end.callback(failures.close)
        worker.show_failures(failures.show)
        _serve(config, worker, lines.show, with_parent=options.with_parent)
    return 0


def _serve(
    config: Config, worker: Worker, tell: Callable[[str], None], *, with_parent: bool
) -> None:
    console = WorkerConsole(worker.status, mesh=config.mesh, url=config.orchestrator_url, tell=tell)
    worker.on_notice(console.network_notice)
    beside = _Beside(config, worker, console)
    with _status_page(config, worker, beside.services, console):

        def start() -> None:
            console.begin(
                folder=config.data_dir,
                interfaces=_interfaces(config),
                wanted=config.worker_id,
                host=LOOPBACK if config.web_host in ANY_ADDRESS else addresses_of(config)[0],
            )
            beside.start()

        if with_parent:
            end_with_parent(worker.request_stop)
        try:
            worker.run(on_start=start, on_drain=console.drain)
        finally:
            beside.close()
    console.end()


class _Beside:
    """What runs beside the worker: its LLM services, its console, an Ollama that it starts."""

    def __init__(self, config: Config, worker: Worker, console: WorkerConsole) -> None:
        def warn(text: str) -> None:
            event(_log, logging.WARNING, "llm", note=text)
            console.notice(text)

        self._stop, self._worker = threading.Event(), worker
        self._fetch = ModelFetch(config.ollama_model, tell=console.say)
        self.services = LlmServices(
            worker,
            configured(config),
            config=config,
            console=ServicesConsole(console.say),
            warn=warn,
            on_seen=self._fetch.seen,
        )
        self._serve = OllamaServe(
            config,
            logs=Path(config.data_dir) / "logs",
            tell=console.say,
            on_started=self.services.pool.wake,
        )
        self._announced: AnnouncedOllamas | None = None
        if config.ollama_mdns and config.worker_type not in ACCOUNT_TYPES:
            self._announced = AnnouncedOllamas(
                self.services.pool,
                make=lambda url: ollama_at(config, url),
                addresses=lambda: [each.address for each in usable_addresses(config.interfaces)],
                tell=console.say,
            )
        looks: list[Callable[[threading.Event], None]] = [console.run]
        if config.worker_type not in ACCOUNT_TYPES:
            looks.append(self._serve.run)
        self._threads = [
            threading.Thread(target=look, args=(self._stop,), name="beside", daemon=True)
            for look in looks
        ]

    def start(self) -> None:
        """Begin; the worker has its folder by now."""
        self.services.keep_in(self._worker.folder)
        self.services.start(self._stop)
        if self._announced is not None:
            self._announced.start()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all of it."""
        self._stop.set()
        if self._announced is not None:
            self._announced.close()
        self._fetch.close(BESIDE_END_S)
        self._serve.close()
        self.services.close()
        for thread in self._threads:
            if thread.ident is not None:  # it was started: the worker could use its folder
                thread.join(BESIDE_END_S)


def _interfaces(config: Config) -> str:
    found = usable_addresses(config.interfaces)
    return ", ".join(f"{each.interface} ({each.address})" for each in found[:MAX_INTERFACES])


def _require_key(kind: str, config: Config) -> None:
    """Refuse a type that cannot run here.

    Raises:
        ConfigError: there is no key for it.
    """
    variables = {
        "groq": ("GROQ_API_KEY", config.groq_api_key),
        "gemini": ("GEMINI_API_KEY", config.gemini_api_key),
    }
    if kind not in variables:
        return
    variable, key = variables[kind]
    if not key:
        raise ConfigError(f"--type {kind}: {variable} is not set: put your key into .env")


@contextlib.contextmanager
def _status_page(
    config: Config, worker: Worker, services: LlmServices, console: WorkerConsole
) -> Iterator[None]:
    """Serve the status page; without a free port the worker works all the same."""
    ports = range(config.status_port, min(config.status_port + STATUS_PORT_TRIES, PORTS_END))
    with contextlib.ExitStack() as at_end:
        try:
            server = StatusServer(config.web_host, ports, services.report, guard_of(config))
        except (OSError, D8Error) as error:
            event(_log, logging.WARNING, "status.none", error=str(error))
            console.notice(str(error))
        else:
            at_end.callback(server.close)
            worker.show_status_at(server.port)
            server.start()
        yield
