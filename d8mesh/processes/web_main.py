"""The REST process: a client of the broker, behind an HTTP server.

Joins the doors to the server and to a client of the broker, on one event loop, and ends with its
parent. Announces nothing: the broker does, and `launcher` starts and restarts this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.doors.anthropic.door import anthropic_door
from d8mesh.doors.anthropic.listing import AnthropicModels
from d8mesh.doors.api_document import document_door
from d8mesh.doors.batches.door import batch_runner, batches_door
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.ollama.routes import ollama_door
from d8mesh.doors.openai.described import OpenAiProblem
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.doors.openai.routes import openai_door
from d8mesh.doors.rest.api import rest_door
from d8mesh.doors.rest.members import join_door
from d8mesh.doors.tunnel import Exchange, tunnel_door
from d8mesh.doors.waiting import MAX_WAITS, Places
from d8mesh.edge import logs
from d8mesh.edge.garbage import collect_seldom
from d8mesh.edge.logs import event
from d8mesh.edge.network import bind, port_holder
from d8mesh.edge.token_file import TokenFile
from d8mesh.errors import ConfigError, D8Error, NodeClosedError, NotAcknowledgedError
from d8mesh.http.application import Application
from d8mesh.http.guard import Rejections
from d8mesh.http.origins import Origins
from d8mesh.http.proxies import TrustedProxies
from d8mesh.http.routes import Door
from d8mesh.http.server import MAX_CONNECTIONS, Server
from d8mesh.http.tls import files_of, server_context
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.processes.closed import guard_of, refuse_public
from d8mesh.processes.parent import end_at_once_with_parent, end_when_told
from d8mesh.processes.takeover import web_presence
from d8mesh.processes.token_watch import TokenWatch

#: Partial output of a task submitted with ``"listen": true`` is kept so long after its end.
KEPT_S: Final = 600.0
#: An earlier process of ours may need this long to let the port go.
BIND_PATIENCE_S: Final = 3.0
#: Ending may take so long; then the process ends whatever its threads are at.
WEB_END_S: Final = 0.8
#: Requests that wait for nothing but the broker's next answer are let end.
WEB_DRAIN_S: Final = 0.2
#: Goodbye to the broker; what a request has submitted is told by its own answer.
WEB_CLOSE_S: Final = 0.1
#: Descriptors beside the connections: sockets of ZeroMQ, logs, pipes.
_SPARE_DESCRIPTORS: Final = 1024

_log: Final = logging.getLogger("d8mesh.web")


def run_web(config: Config, options: argparse.Namespace) -> int:
    """Serve REST until told to stop, or until the parent is gone: ``--broker ENDPOINT``."""
    is_up = end_at_once_with_parent()
    _, broker = options.rest
    folder = Path(config.data_dir) / "logs"
    logs.setup("web", level=config.log_level, folder=folder, to_stderr=False)
    refuse_public(config)
    _raise_descriptor_limit()
    presence = web_presence(Path(config.data_dir) / "orchestrator")
    try:
        bound = bind_patiently(config.web_host, config.web_port)
        is_up()
        return asyncio.run(_serve(config, broker, bound))
    finally:
        presence.leave()


async def _serve(config: Config, broker: str, bound: socket.socket) -> int:
    """Serve until told to stop; return the exit code: 1 if the client has ended by itself."""
    mesh = AsyncNode(config, endpoint=broker, url=None)
    mesh.runner.stream_buffer.keep_s = KEPT_S
    mesh.hear_together()  # launcher, broker and this process are of one version
    waits, rejections, exchange = Places(MAX_WAITS), Rejections(), Exchange(broker)
    watch = TokenWatch(TokenFile(Path(config.data_dir) / "orchestrator"))
    guard = guard_of(config, watch.tokens)
    catalogue = ModelCatalogue(mesh, lists_cloud=config.cloud != "never")
    spend = watch.tokens.spend
    chats = Chats(mesh, catalogue, keeps_all=config.keep_chats, spend=spend)
    runner = batch_runner(config, mesh, catalogue, spend)
    doors = [
        rest_door(mesh, waits, rejections),
        join_door(mesh, waits),
        tunnel_door(exchange),
        *_llm_doors(config, mesh, chats, catalogue),
        batches_door(runner, openai_problem, OpenAiProblem),
    ]
    doors.append(document_door(doors))
    proxies = TrustedProxies(config.trusted_proxies)
    application = Application(doors, guard, rejections, proxies)
    watch.tokens.on_end += [chats.end_token, application.end_token]
    tls = None if (files := files_of(config)) is None else server_context(files)
    server = Server(application, [bound], guard.admits, rejections, application.refused, tls)
    alive = mesh.loop.create_task(_until_dead(mesh))
    _cancel_at_end(alive)
    await runner.start()
    watching = mesh.loop.create_task(watch.run())
    await server.start()
    (port,) = server.ports
    collect_seldom()
    print(json.dumps({"event": "ready", "port": port}), flush=True)
    event(_log, logging.INFO, "web.up", port=port, broker=broker)
    await _until_either(alive, watching)
    chats.end()
    await runner.close()
    watching.cancel()
    watch.write_usage()
    await server.close(WEB_DRAIN_S)
    await exchange.close()
    with contextlib.suppress(NotAcknowledgedError):  # each request is told by its own answer
        await mesh.close(WEB_CLOSE_S)
    event(_log, logging.INFO, "web.down", port=port)
    return 0 if alive.cancelled() else 1


def _llm_doors(
    config: Config, mesh: AsyncNode, chats: Chats, catalogue: ModelCatalogue
) -> Iterator[Door]:
    """Yield the doors of language models."""
    origins = Origins(config.origins)
    yield ollama_door(mesh, chats, catalogue, model_changes=config.model_changes, origins=origins)
    models = AnthropicModels(catalogue).answered
    yield openai_door(chats, catalogue, origins=origins, lists_for_others=models)
    yield anthropic_door(chats, catalogue, origins)


async def _until_dead(mesh: AsyncNode) -> None:
    """Return when the client has ended by itself."""
    try:
        await mesh.waits.until(mesh.loop.create_future(), None, "its end")
    except NodeClosedError:
        return
    except D8Error:  # the broker refuses it for good: whoever asks is told why
        await mesh.loop.create_future()


async def _until_either(alive: asyncio.Task[None], watching: asyncio.Task[None]) -> None:
    """Return when this process is to end, or nobody watches the tokens any more.

    What is revoked would be good for ever then: the launcher begins anew.
    """
    await asyncio.wait((alive, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        event(_log, logging.ERROR, "tokens.unwatched", error=repr(watching.exception()))


def _cancel_at_end(task: asyncio.Task[None]) -> None:
    """Cancel it when this process is to end; soon after it does so, whatever happens."""

    def end() -> None:
        last_resort = threading.Timer(WEB_END_S, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            task.get_loop().call_soon_threadsafe(task.cancel)

    end_when_told(end)


def bind_patiently(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port, waiting a little for an earlier process to end."""
    until = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            return bind("127.0.0.1" if host == "localhost" else host, port)
        except OSError as error:
            if time.monotonic() >= until:
                raise refused_bind(host, port, error) from error
        time.sleep(0.1)


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
