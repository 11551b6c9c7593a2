"""What is called when a task is done: once, by the I/O thread, each task at the same small cost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from d8mesh.core.client.submission import Submission
from d8mesh.edge.logs import event

#: Called without arguments, once.
Call: TypeAlias = Callable[[], object]

_log: Final = logging.getLogger("d8mesh.client")


class Completions:
    """The calls that the tasks of one client are to end with.

    Thread: `add` and `discard` may be called from any, the rest by the I/O thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls: dict[Submission, dict[int, list[Call]]] = {}

    def add(
        self, submission: Submission, index: int, call: Call, is_done: Callable[[], bool]
    ) -> None:
        """Have `call` called when task `index` is done: at once, by this thread, if it is now."""
        if is_done():
            carry_out([call])
            return
        with self._lock:
            if submission.fresh is None:
                submission.fresh = []
            self._calls.setdefault(submission, {}).setdefault(index, []).append(call)
        if is_done():  # it has ended meanwhile: whoever takes it out calls it
            carry_out(self._take(submission, [index]))

    def discard(self, submission: Submission, index: int, call: Call) -> None:
        """Call it no more; it may be called just now."""
        with self._lock:
            calls = self._calls.get(submission, {}).get(index, [])
            if call in calls:
                calls.remove(call)
                if not calls:
                    self._take(submission, [index])

    def arrived(self, submission: Submission) -> None:
        """Outcomes have come in."""
        fresh, submission.fresh = submission.fresh, []
        carry_out(self._take(submission, fresh or ()))

    def refused(self, submission: Submission) -> None:
        """None of these tasks was accepted."""
        with self._lock:
            calls = self._calls.pop(submission, {})
        carry_out([call for each in calls.values() for call in each])

    def release(self) -> None:
        """Nothing will come any more: nobody may wait for ever."""
        with self._lock:
            submissions = list(self._calls)
        for submission in submissions:
            self.refused(submission)

    def _take(self, submission: Submission, indices: list[int] | tuple[()]) -> list[Call]:
        with self._lock:
            calls = self._calls.get(submission)
            if calls is None:
                return []
            taken = [call for index in indices for call in calls.pop(index, ())]
            if not calls:
                del self._calls[submission]
                submission.fresh = None  # nobody looks there any more
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
