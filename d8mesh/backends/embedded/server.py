"""The child: llama.cpp's own HTTP server with one model, on a free port of loopback.

``python -m d8mesh.backends.embedded``: takes one line of JSON from its standard input
(`Order`), says one on its standard output (``{"url": …}``, or ``{"error": …}``), and ends when
its standard input does: with its parent. The key travels by neither arguments nor environment,
where others of the machine could read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from d8mesh.edge.terminal import tell

#: llama.cpp says errors, and no more.
VERBOSITY: Final = 1
#: Tokens read at once: llama.cpp's own default; a prompt's part of it is not cancelled.
BATCH_TOKENS: Final = 512
#: To the kernel, when memory is short: rather this process than others of the user.
OOM_SCORE: Final = "500"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to load, and how."""

    path: str
    key: str
    threads: int
    #: tokens of one conversation
    context: int
    #: requests that it answers at once
    slots: int
    is_embedder: bool = False


def main() -> int:
    """Load the model, say where it answers, and serve until the parent is gone."""
    said = os.dup(1)
    os.dup2(2, 1)  # what llama.cpp prints is not for the parent to read
    try:
        order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    except msgspec.DecodeError:
        tell("this command is started by a worker, for its embedded model")
        return 2
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    with contextlib.suppress(OSError):  # Linux has it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, "ascii")
    try:
        server, url = _served(order)
    except Exception as error:  # whatever llama.cpp or its import may raise is told
        os.write(said, _line(error=f"{type(error).__name__}: {error}"))
        return 1
    os.write(said, _line(url=url))
    threading.Event().wait()
    del server
    return 0


def _served(order: Order) -> tuple[object, str]:
    """Start llama.cpp's server; it runs on threads of its own for as long as it is held."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order.path
    params.n_parallel = order.slots
    params.n_ctx = order.context * order.slots
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = order.threads
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [order.key]
    params.cors_origins = ""
    params.ui = params.endpoint_slots = False
    params.embedding = order.is_embedder
    params.cache_ram_mib = 0  # prompts of conversations that are over
    params.warmup = False
    params.verbosity = VERBOSITY
    server = xllamacpp.Server(params)
    return server, str(server.listening_address)


def _line(**told: str) -> bytes:
    """Return a line for the parent; short enough for a pipe to take it whole."""
    return json.dumps(told).encode() + b"\n"


def _end_with_parent() -> NoReturn:
    with contextlib.suppress(OSError):
        while os.read(0, 64):
            pass
    os._exit(0)
