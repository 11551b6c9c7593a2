"""What people use: a `Worker` with handlers, run until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from d8mesh import __version__
from d8mesh.config import Config
from d8mesh.core.protocol.messages import MAX_NAMES, OfferedModel, OfferedService, Placement
from d8mesh.core.worker.broker_session import Profile
from d8mesh.core.worker.effects import WorkerEffect
from d8mesh.core.worker.session import WorkerSession
from d8mesh.edge.discovery import Announcement, Discovery, NodeKind
from d8mesh.edge.identity import Identity
from d8mesh.edge.installation import config_of, settled
from d8mesh.edge.logs import event
from d8mesh.edge.network import host_name, machine_id, usable_addresses
from d8mesh.edge.sqlite.recovery.mend import Mended, adopt, open_mended
from d8mesh.edge.transport.keys import KeyPair, kept_pair
from d8mesh.edge.transport.sockets import Waker
from d8mesh.edge.waits import wait_for
from d8mesh.errors import ConfigError, HandlerError, NodeClosedError, WorkerError
from d8mesh.handlers import results
from d8mesh.handlers.retrying import ANY, Backoff, Retries, RetryRule
from d8mesh.nodes.credentials import credentials_of
from d8mesh.nodes.worker.importable import process_name, prove
from d8mesh.nodes.worker.orchestrators import Orchestrators
from d8mesh.nodes.worker.runner import WorkerRunner
from d8mesh.nodes.worker.signals import signals_told_to
from d8mesh.nodes.worker.slots import Bell, Registered, Slots
from d8mesh.nodes.worker.warmer import Warmer

#: The first signal gives running tasks this long.
DRAIN_S: Final = 25.0
#: Beyond the drain, how long the goodbyes may take.
WORKER_GOODBYE_S: Final = 5.0
#: How often `Worker.run` looks whether the worker lives. Elsewhere than on Windows a signal
#: ends the pause.
ALIVE_LOOK_S: Final = 0.5 if sys.platform == "win32" else 2.0
#: More threads than this on one machine are a mistake.
MAX_SLOTS: Final = 1024
#: What the mesh is told of a worker's trouble; the protocol has room for 1000.
MAX_TROUBLE_CHARS: Final = 600
#: A worker whose type nobody named.
UNNAMED_TYPE: Final = "python"

_log: Final = logging.getLogger("d8mesh.worker")
_H = TypeVar("_H", bound=Callable[..., object])


class Worker:
    """A worker: serves every orchestrator of its mesh with its handlers.

    Args:
        url: ``http://HOST:PORT`` of an orchestrator (or ``tcp://HOST:PORT`` of its broker)
            to serve too; the others are found by mDNS.
        config: the settings; None reads them from the environment.
        slots: how many tasks run at once; None for the number of processors.
        name: the id wanted; None for WORKER_ID or the stored one.
        worker_type: shown in lists; None for WORKER_TYPE.

    Raises:
        ConfigError: an argument is not allowed.

    Thread: any.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: Config | None = None,
        slots: int | None = None,
        name: str | None = None,
        worker_type: str | None = None,
    ) -> None:
        self._config = config_of(os.environ) if config is None else settled(config)
        count = max(2, os.cpu_count() or 1) if slots is None else slots
        if not 1 <= count <= MAX_SLOTS:
            raise ConfigError(f"slots={count}: expected 1 to {MAX_SLOTS}")
        self._url = url or self._config.orchestrator_url
        self._slot_count = count
        self._name = name or self._config.worker_id
        self.worker_type = worker_type or self._config.worker_type or UNNAMED_TYPE
        self._handlers: dict[str, Registered] = {}
        self._offered: tuple[str, ...] | None = None
        self._models: tuple[str, ...] = ()
        self._backend: dict[str, object] = {}
        self._trouble = ""
        self._services: tuple[tuple[str, ...], tuple[OfferedService, ...]] = ((), ())
        self._warmer = Warmer()
        self._on_notice: Callable[[str], None] = lambda text: None
        self._status_port = 0
        #: whoever asks `run` to end puts something in: of all queues and events only this kind
        #: may be used by a signal handler while the same thread waits for it
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._runner: WorkerRunner | None = None
        self._identity: Identity | None = None
        self._discovery: Discovery | None = None
        self._slots: Slots | None = None
        self._boot_id = secrets.token_hex(8)
        self._keys: KeyPair | None = None
        #: what mDNS brought and was not heeded, by reason
        self._ignored: Counter[str] = Counter()
        self._on_failure: Callable[[str], None] | None = None

    # ------------------------------------------------------------------ handlers

    def task(
        self, name: str, *, process: bool = False, retry: RetryRule = True, backoff: Backoff = None
    ) -> Callable[[_H], _H]:
        """Return a decorator that registers the function for tasks of type `name`."""

        def decorate(handler: _H) -> _H:
            self.register(name, handler, process=process, retry=retry, backoff=backoff)
            return handler

        return decorate

    def register(
        self,
        name: str,
        handler: Callable[..., Any],
        *,
        process: bool = False,
        retry: RetryRule = True,
        backoff: Backoff = None,
    ) -> None:
        """Run tasks of type `name` with `handler` (``f(data)`` or ``f(data, context)``).

        Args:
            process: run it in processes of its own, which can be killed; what a process gets
                that imports ``MODULE:NAME`` must be this very handler.
            retry: which failed attempts are tried again, as long as the task has attempts left:
                all, none (False), errors of a class or of a tuple of classes, or those for which
                a function of the error returns true. `d8mesh.Reject` is never tried again.
            backoff: seconds before the next attempt, at most a day, or a function that returns
                them for the number of the attempt that failed; None: short, growing pauses.

        Raises:
            HandlerError: it cannot be called, or a process could not import it; `retry` or
                `backoff` is something else.
        """
        if not 0 < len(name) <= 128 or len(self._handlers) >= MAX_NAMES:
            raise HandlerError(f"{name[:140]!r}: a task type has 1 to 128 characters")
        if not callable(handler):
            raise HandlerError(f"the handler of {name!r} is no function")
        function = process_name(handler) if process else None
        made = Retries(retry, backoff)
        retries = ANY if made == ANY else made
        if process:
            retries.named()
        takes_context = results.takes_context(handler)
        self._handlers[name] = Registered(handler, takes_context, function, retries)
        self._announce_offer()

    def offer(
        self,
        task_types: Iterable[str] | None,
        models: Iterable[str] = (),
        *,
        backend: dict[str, object] | None = None,
        trouble: str = "",
    ) -> None:
        """Change what is offered now; the orchestrators hear of it at once.

        Args:
            task_types: of the registered ones; None for all.
            models: language models that are there.
            backend: what the status page says of the service behind the handlers.
            trouble: why that is less than it could be, for people; the mesh is told.
        """
        self._offered = None if task_types is None else tuple(task_types)
        self._models = tuple(models)[:MAX_NAMES]
        self._backend = {} if backend is None else dict(backend)
        self._trouble = trouble[:MAX_TROUBLE_CHARS]
        self._announce_offer()

    def offer_services(self, types: Iterable[str], services: Iterable[OfferedService]) -> None:
        """Change which LLM services it reaches, and the types they answer.

        Tasks of these types come with `TaskContext.placement` then, and run beside the slots; their
        handlers are registered as all are. Without a service none of it is told. Thread: any.
        """
        offered = self._services = (tuple(types), tuple(services))
        self._change(lambda session, now: session.services.offer(*offered, now))

    def measured(self, service: str, models: Iterable[OfferedModel]) -> None:
        """Change models of the service with this id: each replaces what was said of its name.

        What a handler's thread says here is told before what its attempt ends in. Thread: any.
        """
        said = tuple(models)
        self._change(lambda session, now: session.services.measured(service, said, now))

    def described(self, service: str, model: str, payload: bytes) -> None:
        """Pass on all that a service tells of a model: a map in msgpack. Thread: any."""
        self._change(lambda session, now: session.services.described(service, model, payload, now))

    def on_warm(self, load: Callable[[Placement], None]) -> None:
        """Have `load` called, on a thread of its own, when a model had better be loaded."""
        self._warmer.load = load

    def show_failures(self, show: Callable[[str], None]) -> None:
        """Have failed attempts shown as texts of several lines; call it before `start`.

        Args:
            show: must not wait, for it is called by the thread that ran the handler.
        """
        self._on_failure = show

    # ------------------------------------------------------------------- running

    @property
    def task_types(self) -> tuple[str, ...]:
        """The task types it offers now."""
        return self._types()

    @property
    def worker_id(self) -> str:
        """The id it goes by; "" before `start`."""
        return "" if self._runner is None else self._runner.session.profile.worker_id

    @property
    def folder(self) -> Path:
        """The folder that is this worker's alone; not before `start`."""
        assert self._identity is not None
        return self._identity.folder

    def start(self) -> None:
        """Begin to look for orchestrators and to take tasks; returns at once.

        Raises:
            NodeClosedError: it was started before.
            HandlerError: a process would import something else than a handler registered for one.
            WorkerError: its folder or its outbox cannot be used.
            ConfigError: its key file cannot be used.
        """
        if self._runner is not None:
            raise NodeClosedError("a worker is started once: make a new one")
        for handler in self._handlers.values():
            if handler.function is not None:
                prove(handler.call, handler.function)
        config = self._config
        identity = Identity(Path(config.data_dir), self._name)
        try:
            keys = self._keys = kept_pair(identity.folder)
            outbox, mended = open_mended(identity.folder, is_sealed=config.encrypt)
            with contextlib.closing(outbox):
                if mended is not None:
                    _tell_mended(mended)
                adopt(outbox, identity.workers, own_folder=identity.folder)
                kept = outbox.load()
        except BaseException:
            identity.close()
            raise
        self._identity = identity
        session = WorkerSession(self._profile(identity.worker_id, keys), kept)
        waker = Waker()
        slots = Slots(self._slot_count, self._handlers, identity.worker_id, Bell(waker))
        orchestrators = Orchestrators(
            config, url=self._url, known=identity.brokers, keys=keys, wake=waker.wake
        )
        self._slots = slots
        if self._on_failure is not None:
            slots.failures.on_told = self._on_failure
        self._runner = WorkerRunner(
            session,
            slots=slots,
            orchestrators=orchestrators,
            identity=identity,
            waker=waker,
            addresses=lambda: frozenset(self._addresses()),
        )
        self._runner.on_warm = self._warmer.warm_up
        session.services.offer(*self._services, time.monotonic())
        self._discovery = self._discover(orchestrators, identity.worker_id)
        self._runner.start()

    def wait_joined(self, timeout_s: float) -> bool:
        """Wait until an orchestrator has welcomed the worker; False if none did in time."""
        return self._runner is not None and wait_for(self._runner.joined, timeout_s)

    def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Take nothing new, finish or give back within `drain_s`, say goodbye; waits for it."""
        runner, slots = self._runner, self._slots
        if runner is None or slots is None:
            return
        runner.stop(drain_s)
        wait_for(runner.ended, drain_s + WORKER_GOODBYE_S)
        if self._discovery is not None:
            self._discovery.close()
        slots.close(1.0)
        if self._identity is not None:
            self._identity.close()

    def request_stop(self) -> None:
        """Let `run` drain and return, as a first Ctrl-C does. Thread: any."""
        self._stops.put(None)

    def run(
        self,
        *,
        on_start: Callable[[], None] = lambda: None,
        on_drain: Callable[[int, float], None] = lambda running, drain_s: None,
    ) -> None:
        """Work until Ctrl-C, SIGTERM or (Windows) Ctrl-Break; a second one stops at once.

        Args:
            on_start: called once, when the worker has begun; signals are heeded from before.
            on_drain: called once, when it was told to stop: how many tasks run, and how many
                seconds they get.

        Raises:
            WorkerError: it ended by a fault of its own; the log says more.

        Thread: the main thread.
        """
        with signals_told_to(self._stops):
            if self._runner is None:
                self.start()
            runner = self._runner
            assert runner is not None
            on_start()
            while not runner.ended.is_set():
                with contextlib.suppress(queue.Empty):
                    self._stops.get(timeout=ALIVE_LOOK_S)
                    on_drain(self._running_count(), DRAIN_S)
                    break
            self.stop()
        if runner.fatal is not None:
            raise WorkerError(f"the worker ended by a fault of its own: {runner.fatal!r}")

    def on_notice(self, told: Callable[[str], None]) -> None:
        """Have `told` called with what people should know of the network, a sentence each.

        Thread: it is called on discovery's own.
        """
        self._on_notice = told

    def status(self) -> dict[str, object]:
        """Return the body of the status page; ``status`` is "healthy" or "unhealthy"."""
        runner = self._runner
        session = None if runner is None else runner.session
        sessions = [] if session is None else list(session.brokers.values())
        endpoints = {} if runner is None else runner.endpoints
        orchestrators = [
            {"broker_id": each.broker_id, "endpoint": endpoints.get(each.key, "")}
            for each in sessions
            if each.is_welcome
        ]
        lost = [
            {"broker_id": each.broker_id, "why": each.lost}
            for each in sessions
            if each.lost and each.broker_id and not each.is_welcome
        ]
        refusals = (each.refusal for each in sessions if each.refusal and not each.is_welcome)
        refused = list(dict.fromkeys(refusals))
        passed_over = [] if runner is None else runner.passed_over
        reasons: list[str] = []
        if not orchestrators:
            why = "; ".join(refused)
            nobody = "; ".join(passed_over) or "no orchestrator has been found yet"
            reasons.append(f"refused: {why}" if why else nobody)
        if self._backend.get("is_up") is False:
            reasons.append(str(self._backend.get("reason") or "the backend is down"))
        outbox = "" if runner is None else runner.outbox_trouble
        if session is not None and session.is_outbox_full:
            outbox = outbox or "the outbox is full of results that no orchestrator has taken"
        if outbox:
            reasons.append(outbox)
        body: dict[str, object] = {
            "status": "unhealthy" if reasons else "healthy",
            "service": "d8-worker",
            "worker_id": self.worker_id,
            "called_before": (self._identity.called_before if self._identity else "") or None,
            "worker_type": self.worker_type,
            "orchestrators": orchestrators,
            "lost": lost,
            "refused": refused,
            "passed_over": passed_over,
            "ignored": dict(self._ignored),
            "slots": self._slot_count,
            "running": self._running_count(),
            "stuck": 0 if session is None else session.stuck,
            "tasks_completed": 0 if session is None else session.completed,
            "tasks_failed": 0 if session is None else session.failed,
            "outbox": outbox or None,
            "backend": self._backend,
            "task_types": list(self._types()),
            "models": list(self._models),
            "status_port": self._status_port or None,
            "version": __version__,
        }
        if reasons:
            body["reason"] = "; ".join(reasons)
        return body

    def show_status_at(self, port: int) -> None:
        """Tell the mesh where the status page is; call it before `start`."""
        self._status_port = port

    def _types(self) -> tuple[str, ...]:
        registered = sorted(self._handlers)
        if self._offered is None:
            return tuple(registered)
        return tuple(name for name in registered if name in self._offered)

    def _announce_offer(self) -> None:
        offered = self._types(), self._models, self._trouble
        self._change(lambda session, now: session.offer(*offered))

    def _change(self, change: Callable[[WorkerSession, float], None]) -> None:
        """Change what the session offers, once there is one, and tell what is due."""
        runner = self._runner
        if runner is None:
            return

        def act(now: float) -> list[WorkerEffect]:
            change(runner.session, now)
            return runner.session.tick(now)

        runner.do(act)

    def _profile(self, worker_id: str, keys: KeyPair) -> Profile:
        return Profile(
            mesh=self._config.mesh,
            worker_id=worker_id,
            boot_id=self._boot_id,
            worker_type=self.worker_type,
            machine_id=machine_id(),
            host=host_name(),
            status_port=self._status_port,
            slots=self._slot_count,
            task_types=self._types(),
            models=self._models,
            trouble=self._trouble,
            credentials=credentials_of(self._config, keys),
        )

    def _running_count(self) -> int:
        return 0 if self._slots is None else len(self._slots.running())

    def _tell_trouble(self, text: str) -> None:
        event(_log, logging.WARNING, "discovery", trouble=text)
        self._on_notice(text)

    def _addresses(self) -> list[str]:
        return [each.address for each in usable_addresses(self._config.interfaces)]

    def _discover(self, orchestrators: Orchestrators, worker_id: str) -> Discovery:
        discovery = Discovery(
            mesh=self._config.mesh,
            addresses=self._addresses,
            on_sighting=lambda sighting: orchestrators.told(sighting.broker),
            browse=(NodeKind.ORCHESTRATOR,),
            on_trouble=self._tell_trouble,
            on_ignored=lambda code: self._ignored.update([code]),
        )
        if self._status_port:
            announcement = Announcement(
                kind=NodeKind.WORKER,
                node_id=worker_id,
                boot_id=self._boot_id,
                mesh=self._config.mesh,
                port=self._status_port,
                web_port=None,
                version=__version__,
                server_key=None if self._keys is None else self._keys.public,
            )
            discovery.announce(announcement)
        discovery.start()
        return discovery


def _tell_mended(mended: Mended) -> None:
    event(
        _log,
        logging.WARNING,
        "outbox.mended",
        moved_to=str(mended.moved_to),
        saved=mended.saved,
        damaged=mended.damaged,
        unreadable_pages=mended.damaged_pages,
        hint="the tasks of lost results are run again",
    )
