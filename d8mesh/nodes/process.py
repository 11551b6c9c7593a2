"""A handler in a process of its own: the hidden command ``_process MODULE:FUNCTION``.

What the parent sends: [task id, attempt, seconds left, worker id, data]. What goes back:
["chunk", payload] while it runs and ["end", kind, payload] after. Everything that the
handler prints goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import msgspec

from d8mesh.config import Config
from d8mesh.core.json_model import packed_json
from d8mesh.edge.child import packed, unpacked
from d8mesh.errors import HandlerError
from d8mesh.handlers import endings


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the handler for each frame of standard input until that ends.

    Raises:
        HandlerError: there is no such function.
    """
    del config
    for name in ("SIGINT", "SIGBREAK"):  # the terminal's, meant for the parent
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    frames: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(frames,), daemon=True).start()
    handler = load(options.rest[0])
    while True:
        task_id, attempt, left_s, worker_id, payload = frames.get()
        context = ProcessContext(task_id, attempt, time.monotonic() + left_s, output)
        _write(output, ["end", *_run_one(handler, payload, context, worker_id)])


def load(function: str) -> Callable[..., object]:
    """Return the function that ``MODULE:FUNCTION`` names.

    Raises:
        HandlerError: there is none.
    """
    module_name, _, path = function.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise HandlerError(f"cannot load the handler {function}: {error}") from error
    if not callable(found):
        raise HandlerError(f"{function} is no function")
    return found  # type: ignore[no-any-return]


class ProcessContext:
    """What a handler in a process may ask and tell; it is cancelled by being killed."""

    def __init__(
        self, task_id: str, attempt: int, deadline: float, output: IO[bytes] | None
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self._deadline = deadline
        self._output = output

    @property
    def is_cancelled(self) -> bool:
        """Always False: a cancelled process is gone."""
        return False

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline."""
        return self._deadline - time.monotonic()

    def emit(self, chunk: object) -> None:
        """Send partial output."""
        if self._output is not None:
            _write(self._output, ["chunk", packed_json(chunk, "the output")])

    def raise_if_cancelled(self) -> None:
        """Do nothing: a cancelled process is gone."""


def _run_one(
    handler: Callable[..., object], payload: bytes, context: ProcessContext, worker_id: str
) -> endings.Ending:
    started = time.monotonic()
    try:
        data = msgspec.msgpack.decode(payload)
        value = handler(data, context) if endings.takes_context(handler) else handler(data)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
    except (Exception, SystemExit) as error:
        return endings.of_exception(error, worker_id, _since(started))
    return endings.of_value(value, worker_id, _since(started))


async def _awaited(value: Any) -> object:
    return await value


def _since(started: float) -> float:
    return round(time.monotonic() - started, 6)


def _write(output: IO[bytes], frame: list[object]) -> None:
    data = memoryview(packed(frame))
    while data:
        written = output.write(data)
        data = data[written or 0 :]


def _read(frames: queue.SimpleQueue[list[Any]]) -> None:
    while (frame := unpacked(sys.stdin.buffer)) is not None:
        frames.put(frame)
    os._exit(0)  # the parent is gone, or done: nothing here may outlive it
