"""Loads models ahead of their tasks, off the I/O thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from d8mesh.core.protocol.messages import Placement
from d8mesh.edge.logs import event

_log: Final = logging.getLogger("d8mesh.worker")


class Warmer:
    """Calls what loads a model, on a thread of its own: one at a time for each service.

    While a service loads, what else it is told to load is passed over: the orchestrator says it
    again if it is still worth it.
    """

    def __init__(self) -> None:
        #: loads a model and returns when it is done; None: nothing here can
        self.load: Callable[[Placement], None] | None = None
        self._lock = threading.Lock()
        self._loading: set[str] = set()

    def warm_up(self, placement: Placement) -> None:
        """Load a model. Thread: the I/O thread."""
        with self._lock:
            if self.load is None or placement.service in self._loading:
                return
            self._loading.add(placement.service)
        thread = threading.Thread(
            target=self._load, args=(self.load, placement), name="warm-up", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._end(placement, error)

    def _load(self, load: Callable[[Placement], None], placement: Placement) -> None:
        try:
            load(placement)
        except Exception as error:  # whatever a service does: its tasks find out by themselves
            self._end(placement, error)
        else:
            self._end(placement)

    def _end(self, placement: Placement, error: Exception | None = None) -> None:
        with self._lock:
            self._loading.discard(placement.service)
        if error is not None:
            where = {"service": placement.service, "model": placement.model}
            event(_log, logging.WARNING, "warm_up.failed", **where, error=repr(error))
