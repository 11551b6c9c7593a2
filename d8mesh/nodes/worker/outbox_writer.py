"""The worker's outbox as its brain wants it; what the disk does not take is tried again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from d8mesh.core.worker.effects import Forget, Keep, KeptResult
from d8mesh.edge.failpoints import passed
from d8mesh.edge.logs import event
from d8mesh.edge.sqlite.outbox import Outbox
from d8mesh.errors import WorkerError

_log: Final = logging.getLogger("d8mesh.worker")


class OutboxWriter:
    """Writes what is to be kept; while that fails it stays in memory.

    Args:
        folder: the worker's.

    Thread: the I/O thread.
    """

    def __init__(self, folder: Path) -> None:
        #: why the last writing failed; empty: it did not
        self.trouble = ""
        self._folder = folder
        self._outbox: Outbox | None = None
        #: what the outbox did not take, and did not forget: tried again until it does
        self._unkept: dict[bytes, KeptResult] = {}
        self._unforgotten: set[bytes] = set()

    def open(self) -> None:
        """Open it, if it is not yet.

        Raises:
            WorkerError: it cannot be used.
        """
        self._outbox = self._outbox or Outbox(self._folder)

    def close(self) -> None:
        """Close it."""
        if self._outbox is not None:
            self._outbox.close()

    def tidy(self) -> None:
        """Have what was forgotten unreadable; what the disk does not take now is tried again."""
        if self._outbox is not None and self._outbox.needs_wiping and not self.trouble:
            try:
                self._outbox.wipe()
            except WorkerError as error:
                event(_log, logging.WARNING, "outbox.unwiped", error=str(error))

    def store(self, effect: Keep | Forget) -> None:
        """Write, or delete, results; in trouble that waits for the next `write`."""
        if isinstance(effect, Keep):
            self._unkept.update((row.token, row) for row in effect.results)
        else:
            for token in effect.tokens:
                if self._unkept.pop(token, None) is None:
                    self._unforgotten.add(token)
        if not self.trouble:
            self.write()

    def write(self) -> None:
        """Have the outbox as it should be."""
        assert self._outbox is not None
        try:
            if self.trouble:
                self._outbox.probe()
            if self._unkept:
                self._outbox.keep(list(self._unkept.values()))
                self._unkept.clear()
                passed("worker.outbox_written")
            if self._unforgotten:
                self._outbox.forget(list(self._unforgotten))
                self._unforgotten.clear()
            why = ""
        except WorkerError as error:
            why = str(error)
        if bool(why) != bool(self.trouble):
            level, name = (logging.ERROR, "outbox.failed") if why else (logging.INFO, "outbox.ok")
            event(_log, level, name, error=why)
        self.trouble = why
