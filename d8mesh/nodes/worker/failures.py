"""What a worker says of attempts that failed: a log line each, within bounds, and a block to show.

A type that fails a thousand times a second is told a few times in an interval, and then how
many there were. The result object of each carries its own traceback all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from d8mesh.core.worker.effects import Attempt
from d8mesh.edge.logs import escape, event, traced
from d8mesh.handlers.tracebacks import bounded
from d8mesh.words import tr, translated

#: Seconds in which failures are counted together.
COUNTED_TOGETHER_S: Final = 10.0
#: Failures of one type told in an interval: enough to see that they are all alike.
SHOWN_PER_TYPE: Final = 5
#: Failures of all types told in an interval, a screen or two: beyond them only the first of a
#: type, and beyond the second bound none.
SHOWN_IN_ALL: Final = 20
FIRST_IN_ALL: Final = 60
#: Types whose further failures are counted singly; the rest are counted together.
MAX_COUNTED_TYPES: Final = 100
#: Rows of a traceback in a block; of a longer one the beginning and the end.
MAX_ROWS: Final = 30
HEAD_ROWS: Final = 8
#: Characters of an error and of a type in the first line of a block.
MAX_TITLE_CHARS: Final = 300
SHOWN_TYPE_CHARS: Final = 60

_OTHERS: Final = "other types"
_log: Final = logging.getLogger("d8mesh.worker")


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One attempt that failed."""

    task_id: str
    task_type: str
    attempt: int
    slot: str
    error: str
    traceback: str = ""

    def as_block(self) -> str:
        """Return it for people: a line that names it, the rows of its traceback indented."""
        title = tr(
            "task {id} ({kind}, attempt {attempt}) failed: {why}",
            id=self.task_id,
            kind=_short(self.task_type, SHOWN_TYPE_CHARS),
            attempt=self.attempt,
            why=translated(_short(self.error, MAX_TITLE_CHARS)) or tr("no reason is given"),
        )
        rows = self.traceback.split("\n") if self.traceback else []
        if len(rows) > MAX_ROWS:
            tail = MAX_ROWS - HEAD_ROWS - 1
            between = tr(
                "… {count} lines, all of them are in the log …", count=len(rows) - HEAD_ROWS - tail
            )
            rows = [*rows[:HEAD_ROWS], between, *rows[-tail:]]
        return "\n".join([title, *(f"    {row}" for row in rows)])


class Failures:
    """Tells failures, and counts those beyond the bounds.

    Thread: any.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        #: called with each block and each count, beside the log; must not wait
        self.on_told: Callable[[str], None] = lambda text: None
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told: dict[str, int] = {}
        self._told_in_all = 0
        self._more: dict[str, int] = {}

    def note(self, attempt: Attempt, *, number: int, slot: str, payload: bytes) -> None:
        """An attempt ended with this failed result.

        Args:
            number: which attempt of the task it was, from 1.
            slot: where it ran.
        """
        if self._is_told(attempt.type):
            error, traceback = _reasons(payload)
            self._tell(FailedAttempt(attempt.id, attempt.type, number, slot, error, traceback))

    def flush(self, *, is_last: bool = False) -> None:
        """Tell how many more there were once their interval is over, or now."""
        with self._lock:
            if self._since is None:
                return
            took_s = self._clock() - self._since
            if took_s < COUNTED_TOGETHER_S and not is_last:
                return
            more, self._more = self._more, {}
            self._since, self._told, self._told_in_all = None, {}, 0
        for kind, count in more.items():
            event(_log, logging.WARNING, "tasks.failed", type=kind, more=count, within_s=took_s)
            shown = tr(kind) if kind == _OTHERS else _short(kind, SHOWN_TYPE_CHARS)
            if count == 1:
                self.on_told(tr("… and 1 more failure of {kind}", kind=shown))
            else:
                self.on_told(tr("… and {count} more failures of {kind}", count=count, kind=shown))

    def _is_told(self, kind: str) -> bool:
        self.flush()
        with self._lock:
            if self._since is None:
                self._since = self._clock()
            told = self._told.get(kind, 0)
            limit = SHOWN_IN_ALL if told else FIRST_IN_ALL
            if told < SHOWN_PER_TYPE and self._told_in_all < limit:
                self._told[kind] = told + 1
                self._told_in_all += 1
                return True
            if kind not in self._more and len(self._more) >= MAX_COUNTED_TYPES:
                kind = _OTHERS
            self._more[kind] = self._more.get(kind, 0) + 1
            return False

    def _tell(self, failure: FailedAttempt) -> None:
        traced(
            _log,
            logging.WARNING,
            "task.failed",
            failure.traceback,
            task=failure.task_id,
            type=failure.task_type,
            attempt=failure.attempt,
            slot=failure.slot,
            error=failure.error,
        )
        self.on_told(failure.as_block())


def _reasons(payload: bytes) -> tuple[str, str]:
    try:
        result: Any = msgspec.msgpack.decode(payload)
    except msgspec.DecodeError:
        return "", ""
    if not isinstance(result, dict):
        return "", ""
    traceback = result.get("traceback")  # a handler may have returned one of its own
    return str(result.get("error", "")), bounded(traceback) if isinstance(traceback, str) else ""


def _short(text: str, limit: int) -> str:
    text = escape(text[:limit])
    return text if len(text) < limit else text[: limit - 1] + "…"
