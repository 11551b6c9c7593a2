"""What is called when a task is done: once, by the I/O thread, each task at the same small cost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from d8mesh.core.parcel import Parcel
from d8mesh.edge.logs import event

#: Called without arguments, once.
Call: TypeAlias = Callable[[], object]

_log: Final = logging.getLogger("d8mesh.client")


class Completions:
    """The calls that the tasks of one client are to end with.

    Thread: `add` and `discard` may be called from any, the rest by the I/O thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[Parcel, dict[int, list[Call]]] = {}

    def add(self, parcel: Parcel, index: int, call: Call, is_done: Callable[[], bool]) -> None:
        """Have `call` called when task `index` is done: at once, by this thread, if it is now.

        Args:
            is_done: whether it is.
        """
        if is_done():
            carry_out([call])
            return
        with self._lock:
            if parcel.fresh is None:
                parcel.fresh = []
            self._calls.setdefault(parcel, {}).setdefault(index, []).append(call)
        if is_done():  # it has ended meanwhile: whoever takes it out calls it
            carry_out(self._take(parcel, [index]))

    def discard(self, parcel: Parcel, index: int, call: Call) -> None:
        """Call it no more; it may be called just now."""
        with self._lock:
            calls = self._calls.get(parcel, {}).get(index, [])
            if call in calls:
                calls.remove(call)
                if not calls:
                    self._drop(parcel, [index])

    def arrived(self, parcel: Parcel) -> None:
        """Outcomes have come in."""
        fresh, parcel.fresh = parcel.fresh, []
        carry_out(self._take(parcel, fresh or ()))

    def refused(self, parcel: Parcel) -> None:
        """None of these tasks was accepted."""
        with self._lock:
            calls = self._calls.pop(parcel, {})
        carry_out([call for each in calls.values() for call in each])

    def release(self) -> None:
        """Nothing will come any more: nobody may wait for ever."""
        with self._lock:
            parcels = list(self._calls)
        for parcel in parcels:
            self.refused(parcel)

    def _take(self, parcel: Parcel, indices: list[int] | tuple[()]) -> list[Call]:
        with self._lock:
            return self._drop(parcel, indices)

    def _drop(self, parcel: Parcel, indices: list[int] | tuple[()]) -> list[Call]:
        calls = self._calls.get(parcel)
        if calls is None:
            return []
        taken = [call for index in indices for call in calls.pop(index, ())]
        if not calls:
            del self._calls[parcel]
            parcel.fresh = None  # nobody looks there any more
        return taken


def carry_out(calls: list[Call]) -> None:
    """Call these; whatever they raise is logged and stops nobody else."""
    for call in calls:
        try:
            call()
        except Exception as error:
            said(call, error)
        except SystemExit as error:  # it would end the thread that all of the client needs
            said(call, error)


def said(call: Call, error: BaseException) -> None:
    """Log what a callback has raised."""
    named = call.func if isinstance(call, partial) else call
    event(_log, logging.ERROR, "callback.raised", callback=repr(named), error=repr(error))
