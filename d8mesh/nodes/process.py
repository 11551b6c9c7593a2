"""A handler in a process of its own: the hidden command ``_process MODULE:FUNCTION IN OUT``.

What the parent sends through its pipe: [token, task id, attempt, seconds left, worker id, data,
retries, placement or nil]. What goes back, with the token of the attempt that it is of: ["chunk",
token, payload] while it runs and ["end", token, kind, payload] after; or ["broken", text,
traceback] once, if there is nothing that could run. Standard input is empty; everything that the
handler prints goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from d8mesh.config import Config
from d8mesh.core.protocol.messages import Placement
from d8mesh.core.worker.effects import UNAVAILABLE
from d8mesh.edge.child.parent import Parent
from d8mesh.errors import BackendUnavailableError, HandlerError
from d8mesh.handlers import results, tracebacks
from d8mesh.handlers.forks import end_copy
from d8mesh.handlers.retrying import AttemptEnd, Retries, of_names


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the handler for each frame of the parent's; ends with the parent.

    Raises:
        HandlerError: there is no such function, or no parent.
    """
    del config
    for name in ("SIGINT", "SIGBREAK"):  # the terminal's, meant for the parent
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _print_to_stderr()
    function, pipes = options.rest[0] if options.rest else "", options.rest[1:]
    parent = Parent(pipes) if pipes else None
    try:
        handler = load(function)
    except HandlerError as error:
        if parent is not None:
            cause = error.__cause__ or error
            parent.tell(["broken", str(error), tracebacks.traceback_text(cause)])
        raise
    parent = parent or Parent(pipes)
    takes_context = results.takes_context(handler)
    while True:
        token, task_id, attempt, left_s, worker_id, payload, retries, place = parent.frames.get()
        deadline = time.monotonic() + left_s
        context = ProcessContext(task_id, attempt, deadline, parent=parent, token=token)
        context.placement = None if place is None else msgspec.convert(place, Placement)
        made = of_names(*retries)
        ending = _ending(handler, takes_context, payload, context, worker_id, made)
        parent.tell(["end", token, *ending])


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
    except BaseException as error:  # whatever the module raises, or exits with
        text = tracebacks.error_text(error)
        raise HandlerError(f"cannot load the handler {function}: {text}") from error
    if not callable(found):
        raise HandlerError(f"cannot load the handler {function}: it is no function")
    return found  # type: ignore[no-any-return]


class ProcessContext:
    """What a handler in a process may ask and tell; it is cancelled by being killed."""

    def __init__(
        self, task_id: str, attempt: int, deadline: float, *, parent: Parent, token: bytes
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.placement: Placement | None = None
        self.process_id = os.getpid()
        self._deadline = deadline
        self._parent, self._token = parent, token

    @property
    def is_cancelled(self) -> bool:
        """Always False: a cancelled process is gone."""
        return False

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline."""
        return self._deadline - time.monotonic()

    def emit(self, chunk: object) -> None:
        """Send partial output (`TaskContext.emit`); after the attempt's end it is dropped.

        Raises:
            HandlerError: this is a process that the handler forked.
        """
        self._parent.tell(["chunk", self._token, results.chunk_of(chunk)])

    def on_cancel(self, call: Callable[[], None]) -> Callable[[], None]:
        """Do nothing: a cancelled process is gone."""
        return lambda: None

    def raise_if_cancelled(self) -> None:
        """Do nothing: a cancelled process is gone."""


def _ending(
    handler: Callable[..., object],
    takes_context: bool,
    payload: bytes,
    context: ProcessContext,
    worker_id: str,
    retries: Retries,
) -> AttemptEnd:
    """Return how a call of the handler ended, whatever is raised."""
    started = time.monotonic()
    raised: BaseException | None = None
    ending: AttemptEnd | None = None
    try:
        data = msgspec.msgpack.decode(payload)
        value = handler(data, context) if takes_context else handler(data)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        ending = results.of_value(value, worker_id, _since(started))
    except BaseException as error:
        raised = error
    if os.getpid() != context.process_id:  # the handler forked, and ended twice
        end_copy(raised)
    try:
        if isinstance(raised, BackendUnavailableError):
            return UNAVAILABLE, tracebacks.message_of(raised).encode("utf-8", "replace")
        if ending is None:
            assert raised is not None
            ending = results.of_exception(raised, worker_id, _since(started))
        return retries.applied(ending, raised, context.attempt)
    except BaseException as error:
        return results.of_untellable(raised or error, worker_id, _since(started))


async def _awaited(value: Awaitable[object]) -> object:
    return await value


def _since(started: float) -> float:
    return round(time.monotonic() - started, 6)


def _print_to_stderr() -> None:
    """Have what is printed, also by C code, come out there, and line by line."""
    with contextlib.suppress(OSError):  # without a standard error it goes nowhere
        os.dup2(2, 1)
    if sys.stdout is not None:
        with contextlib.suppress(AttributeError, ValueError):
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
