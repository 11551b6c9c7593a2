"""The orchestrator's processes: a launcher that keeps a broker and a web process alive.

The launcher starts both as children, brings back what dies with growing pauses, and ends
them when it is told to. A child ends within a second of its parent's death: it watches its
standard input, which is a pipe of the launcher's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from msgspec import structs

from d8mesh.config import Config
from d8mesh.core.broker.effects import Notice
from d8mesh.edge import data_folder, logs
from d8mesh.edge.logs import event
from d8mesh.edge.network import bind, own_names
from d8mesh.edge.presence import Presence
from d8mesh.errors import ConfigError
from d8mesh.http.tls import TlsFiles, files_of, prepared
from d8mesh.processes.closed import refuse_public
from d8mesh.processes.console import OrchestratorConsole
from d8mesh.processes.parent import (
    ask_to_end,
    end_at_once_with_parent,
    end_when_told,
    exit_code_of,
    start_child,
)
from d8mesh.processes.takeover import take_over, when_free

#: Pauses before a child that died is brought back: none, then these, doubling up to a cap.
FIRST_RESTART_S: Final = 0.1
#: The cap for one that had come up: everybody waits for it, and each start costs half a second.
MAX_PAUSE_S: Final = 1.0
#: The cap for one that did not even come up (its disk is full): trying more often helps nobody.
MAX_START_PAUSE_S: Final = 2.0
#: A child that ran this long is healthy: after its next death it is back at once again.
HEALTHY_S: Final = 5.0
#: Time for children to end by themselves before they are killed.
END_S: Final = 10.0
#: A process that has just let its files go lets its port go within this time.
PORT_S: Final = 1.0
PORT_LOOK_S: Final = 0.05
#: Exit codes of a child that a restart cannot mend.
FINAL_EXITS: Final = frozenset({2, 3, 4})
#: The pause between looks at the children; the death of one ends it.
CHILDREN_LOOK_S: Final = 0.2

_log: Final = logging.getLogger("d8mesh.orchestrator")


def run(config: Config, options: argparse.Namespace) -> int:
    """Run an orchestrator until it is told to stop; return the exit code."""
    refuse_public(config)
    if config.web_port == config.broker_port:
        raise ConfigError(
            f"FLASK_PORT and D8_BROKER_PORT are both {config.web_port}: expected a port for each"
        )
    data_folder.require(Path(config.data_dir), "orchestrator", "logs")
    logs.setup("orchestrator", level=config.log_level, folder=_logs(config), to_stderr=False)
    stop = threading.Event()
    end_when_told(stop.set, with_parent=options.with_parent)
    launcher = _Launcher(config, prepared(config, own_names()))
    presence, has_waited = take_over(
        _journal(config), tell=launcher.console.waiting, pause=stop.wait
    )
    try:
        if not stop.is_set():
            _refuse_taken_port(config, PORT_S if has_waited else 0.0)
        return launcher.run(stop, presence)
    finally:
        presence.leave()


def pause_before_start(deaths: int, *, was_up: bool) -> float:
    """Return seconds to wait before a child is started again that died `deaths` times before."""
    cap_s = MAX_PAUSE_S if was_up else MAX_START_PAUSE_S
    doublings = min(deaths, 10)  # beyond every cap; a night of deaths would overflow a float
    return min(cap_s, FIRST_RESTART_S * 2.0**doublings) if deaths else 0.0


def run_broker(config: Config, options: argparse.Namespace) -> int:
    """Be the broker process; says on standard output when it is up."""
    refuse_public(config)
    is_up = end_at_once_with_parent()
    # The launcher starts quicker without them.
    from d8mesh.edge.transport.connections import MAX_PEER_CONNECTIONS
    from d8mesh.edge.transport.descriptors import raise_descriptor_limit
    from d8mesh.nodes.broker import Broker

    web_port = int(options.rest[1]) if options.rest else None  # after --web-port
    logs.setup("broker", level=config.log_level, folder=_logs(config), to_stderr=False)
    raise_descriptor_limit(MAX_PEER_CONNECTIONS)
    tls = files_of(config)
    broker = when_free(
        lambda: Broker(
            config,
            _journal(config).parent,
            web_port=web_port,
            tls="" if tls is None else tls.fingerprint,
            say=_tell_launcher,
        )
    )
    is_up()
    end_when_told(broker.stop)
    print(json.dumps({"event": "ready", **asdict(broker.ready)}), flush=True)
    broker.run()
    return 0


def _tell_launcher(notice: Notice) -> None:
    """Pass on what whoever runs the orchestrator should know; nobody may be there any more."""
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps({"event": "notice", **structs.asdict(notice)}), flush=True)


@dataclass(slots=True, eq=False)
class _KeptAlive:
    """One child process, and when it may be started again."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    is_up: bool = False
    #: we end it ourselves, to start it with other arguments
    is_replaced: bool = False
    deaths: int = 0
    not_before: float = 0.0
    lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)


class _Launcher:
    """Keeps the two children running."""

    def __init__(self, config: Config, tls: TlsFiles | None) -> None:
        self._tls = tls
        self.console = OrchestratorConsole(config, Path(config.data_dir).absolute())
        self._broker = _KeptAlive("broker", ["_broker", "--web-port", str(config.web_port)])
        self._web = _KeptAlive("web", [])
        self._port = 0
        self._said = False
        self._news = threading.Event()

    def run(self, stop: threading.Event, presence: Presence) -> int:
        """Keep them running until `stop` is set; return the exit code.

        Args:
            presence: left before the children are ended, so that a start waits for their end.
        """
        code = 0
        try:
            while not stop.is_set():
                code = self._tend(self._broker, self._ready)
                if not code and self._port:
                    code = self._tend(self._web, self._web_ready)
                if code:
                    break
                self._news.wait(CHILDREN_LOOK_S if self._said else 0.02)
                self._news.clear()
        finally:
            if self._said and stop.is_set():
                self.console.stopping(END_S)
            presence.leave()
            self._end()
        if self._said and not code:
            self.console.stopped()
        return code

    def _tend(self, child: _KeptAlive, tell: Callable[[str], None]) -> int:
        """Start it if it is not running; return an exit code if there is no use in going on."""
        while not child.lines.empty():
            child.is_up = True
            self.console.rose(child.name)
            tell(child.lines.get())
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return 0
            child.process = None
            if code in FINAL_EXITS or (not self._said and code > 0):  # killed: it tries again
                if self._said:
                    self.console.gave_up(child.name, code)
                return code
            if now - child.started > HEALTHY_S:
                child.deaths = 0
            pause_s = pause_before_start(child.deaths, was_up=child.is_up)
            child.deaths += 1
            child.not_before = now + pause_s
            event(
                _log, logging.WARNING, "child.died", child=child.name, code=code, again_in_s=pause_s
            )
            if not child.is_replaced:
                self.console.fell(child.name, code, pause_s)
            child.is_replaced = False
        if now >= child.not_before:
            self._start(child, now)
        return 0

    def _start(self, child: _KeptAlive, now: float) -> None:
        child.process = start_child(*child.arguments)
        child.started, child.is_up = now, False
        threading.Thread(
            target=_pump, args=(child.process, child.lines, self._news), daemon=True
        ).start()

    def _ready(self, line: str) -> None:
        """The broker is up: tell the REST process where, starting it anew if that changed.

        Later lines are of who waits or was refused.
        """
        told = json.loads(line)
        if told["event"] == "notice":
            self.console.noticed(told)
            return
        self._port = told["port"]
        endpoint = f"tcp://127.0.0.1:{self._port}?key={told['server_key']}"
        arguments = ["_web", "--broker", endpoint]
        if arguments != self._web.arguments:
            self._web.arguments = arguments
            if self._web.process is not None:
                self._web.is_replaced = True
                ask_to_end(self._web.process)
        self._broker_id = told["broker_id"]

    def _web_ready(self, line: str) -> None:
        told = json.loads(line)
        if not self._said:
            self._said = True
            self.console.started(
                self._broker_id, web_port=told["port"], broker_port=self._port, tls=self._tls
            )

    def _end(self) -> None:
        """End the children: REST first, so that nobody is told of a broker that has gone."""
        deadline = time.monotonic() + END_S
        for child in (self._web, self._broker):
            if child.process is not None:
                ask_to_end(child.process)
                exit_code_of(child.process, max(0.1, deadline - time.monotonic()))


def _pump(
    process: subprocess.Popen[str], lines: queue.SimpleQueue[str], news: threading.Event
) -> None:
    """Pass on what a child says, and tell of each line and of its end."""
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        for line in process.stdout:
            lines.put(line)
            news.set()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    news.set()


def _journal(config: Config) -> Path:
    return Path(config.data_dir) / "orchestrator" / "journal.db"


def _logs(config: Config) -> Path:
    return Path(config.data_dir) / "logs"


def _refuse_taken_port(config: Config, patience_s: float) -> None:
    """Say who holds the REST port: the child could only die of it."""
    host = "127.0.0.1" if config.web_host == "localhost" else config.web_host
    until = time.monotonic() + patience_s
    while True:
        try:
            bind(host, config.web_port).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                from d8mesh.processes.web_main import refused_bind  # slow, and seldom needed

                raise refused_bind(config.web_host, config.web_port, error) from error
        time.sleep(PORT_LOOK_S)
