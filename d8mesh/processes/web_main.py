"""The REST process: a client of the broker, behind an HTTP server.

Joins `api` to the listener, the client and the exchange, and ends with its parent. Announces
nothing: the broker does, and `orchestrator` starts and restarts this process.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import is_admissible
from d8mesh.doors.rest.api import Api
from d8mesh.doors.rest.mesh import MAX_STREAMS, MAX_WAITS, Places
from d8mesh.doors.tunnel import MAX_LINKS, Exchange
from d8mesh.edge import logs
from d8mesh.edge.logs import event
from d8mesh.edge.network import bind, port_holder
from d8mesh.errors import ConfigError, D8Error, NotAcknowledgedError
from d8mesh.http.guard import MAX_BODY_BYTES, Rejections
from d8mesh.http.server import MAX_CONNECTIONS, Limits, Listener, Refused
from d8mesh.nodes.client import Client
from d8mesh.processes.parent import end_with_parent, stop_signals

#: Threads for requests that wait for nothing but the broker's next answer.
SHORT_THREADS: Final = 32
#: Largest body where no data or results travel.
SMALL_BODY_BYTES: Final = 1_048_576
#: Paths under which data, results and frames travel.
LARGE_PATHS: Final = ("/api/tasks/", "/api/workers/results", "/api/mesh/exchange")
#: Partial output of a task submitted with ``"listen": true`` is kept so long after its end.
KEPT_S: Final = 600.0
#: An earlier process of ours may need this long to let the port go.
BIND_PATIENCE_S: Final = 3.0
#: Ending may take so long; then the process ends whatever its threads are at.
END_S: Final = 0.8
#: Many threads that each do little: whoever has an answer should not wait 5 ms for its turn.
SWITCH_S: Final = 0.001
#: Descriptors beside the connections: sockets of ZeroMQ, logs, pipes.
_SPARE_DESCRIPTORS: Final = 1024

_log: Final = logging.getLogger("d8mesh.web")


def run_web(config: Config, options: argparse.Namespace) -> int:
    """Serve REST until told to stop, or until the parent is gone.

    Args:
        config: the settings.
        options: `options.broker` is the ``tcp://HOST:PORT`` of the broker.

    Raises:
        ConfigError: FLASK_HOST is a public address.
        D8Error: the port cannot be used.
    """
    folder = Path(config.data_dir) / "logs"
    logs.setup("web", level=config.log_level, folder=folder, to_stderr=False)
    refuse_public(config)
    _raise_descriptor_limit()
    sys.setswitchinterval(SWITCH_S)
    _stay_on_one_core()
    bound = bind_patiently(config.web_host, config.web_port)
    client = Client(config=config, endpoint=options.broker)
    client.outputs.keeping.keep_s = KEPT_S
    waits = Places(MAX_WAITS)
    exchange = Exchange(options.broker, Places(MAX_LINKS))
    api = Api(config, client, exchange=exchange, waits=waits)
    listener = Listener(api, bound, limits(), refusal_log(api.rejections))
    stop = _Stop(listener)
    for number in stop_signals():
        signal.signal(number, lambda *_: stop())
    end_with_parent(stop)
    api.on_dead = stop
    print(json.dumps({"event": "ready", "port": listener.port}), flush=True)
    event(_log, logging.INFO, "web.up", port=listener.port, broker=options.broker)
    try:
        listener.run()
        code = 1 if api.is_dead else 0  # before the client ends on purpose
    finally:
        exchange.close()
        with contextlib.suppress(NotAcknowledgedError):  # each request is told by its own answer
            client.close(timeout=0.1)
        event(_log, logging.INFO, "web.down", port=listener.port)
    return code


def limits() -> Limits:
    """Return how much the REST listener takes."""
    return Limits(
        threads=MAX_WAITS + MAX_STREAMS + MAX_LINKS + SHORT_THREADS,
        urgent=("/health",),
        body_bytes=SMALL_BODY_BYTES,
        large_body_bytes=dict.fromkeys(LARGE_PATHS, MAX_BODY_BYTES),
    )


def refusal_log(rejections: Rejections) -> Refused:
    """Return what counts, and tells in the log, what the listener refuses by itself."""

    def refused(code: str, address: str, what: str) -> None:
        rejections.add(code)
        event(_log, logging.INFO, "http.refused", peer=address, code=code, why=what)

    return refused


def bind_patiently(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port, waiting a little for an earlier process to end.

    Raises:
        ConfigError: the address is not this machine's.
        D8Error: the port is taken.
    """
    until = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            return bind("127.0.0.1" if host == "localhost" else host, port)
        except OSError as error:
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            raise refused_bind(host, port, error) from error


def refused_bind(host: str, port: int, error: OSError) -> D8Error:
    """Return what to raise when `error` came of binding the REST port."""
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"FLASK_HOST={host!r}: expected an address of this machine, or 0.0.0.0 for all"
        )
    holder = port_holder(port)
    if holder or error.errno == errno.EADDRINUSE:
        return D8Error(
            f"port {port} on {host} is taken by {holder or 'another program'}: stop it, or set "
            "FLASK_PORT to another port"
        )
    why = error.strerror
    if error.errno == errno.EACCES and str(sys.platform) == "win32":  # SO_EXCLUSIVEADDRUSE says so
        why = (
            "another program has it, or Windows keeps it: `netsh interface ipv4 show "
            "excludedportrange tcp` lists those"
        )
    return D8Error(f"port {port} on {host} cannot be used ({why}): set FLASK_PORT to another port")


class _Stop:
    """Ends the process once, soon, and surely."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._is_called = False

    def __call__(self) -> None:
        if self._is_called:
            return
        self._is_called = True
        last_resort = threading.Timer(END_S, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()
        self._listener.close(timeout_s=0.0)


def refuse_public(config: Config) -> None:
    """Never listen on a public address by accident.

    Raises:
        ConfigError: FLASK_HOST is one, and no key keeps strangers out.
    """
    host = config.web_host
    is_any = host in ("0.0.0.0", "::", "localhost")
    if not is_any and not is_admissible(host) and not (config.mesh_key and config.allow_public):
        raise ConfigError(
            f"FLASK_HOST={host!r} is a public address: expected a private one, or D8_MESH_KEY "
            "and D8_ALLOW_PUBLIC=1"
        )


def _stay_on_one_core() -> None:
    """Keep this process where it is: only one of its threads can run at a time anyway.

    On several cores threads that wait for each other's answers wake across them for Python's
    one lock: with 32 connections that cost two thirds of all requests (`bench rest`).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it is forbidden it is only slower
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _raise_descriptor_limit() -> None:
    """Let this process have as many sockets as the listener takes."""
    if sys.platform == "win32":
        return
    import resource

    wanted = MAX_CONNECTIONS + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
