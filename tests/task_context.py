"""A context to call handlers with, without a worker around them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from d8mesh.core.protocol.messages import Placement
from d8mesh.errors import TaskCancelledError


class Context:
    """What a handler may ask and tell; keeps what it told."""

    def __init__(self, *, remaining_s: float = 60.0, placement: Placement | None = None) -> None:
        self.task_id = "task-1"
        self.attempt = 1
        self.placement = placement
        self.remaining_s = remaining_s
        self.emitted: list[object] = []
        self.has_emitted = threading.Event()
        self._is_cancelled = threading.Event()
        self._calls: list[Callable[[], None]] = []

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        self._is_cancelled.set()
        for call in list(self._calls):
            call()

    def on_cancel(self, call: Callable[[], None]) -> Callable[[], None]:
        self._calls.append(call)
        return lambda: self._calls.remove(call)

    def emit(self, chunk: object) -> None:
        self.raise_if_cancelled()
        self.emitted.append(chunk)
        self.has_emitted.set()

    def raise_if_cancelled(self) -> None:
        if self.is_cancelled:
            raise TaskCancelledError
