"""How far a batch is: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from d8mesh.apps.progress import MAX_SAID_CHARS, one_line
from d8mesh.words import tr, translated

#: Rates are those of so many seconds.
RATE_S: Final = 30.0
#: Plain lines go into logs: at most one in so many seconds, and the last.
PLAIN_LINE_S: Final = 5.0
#: A rate before that is noise.
RATE_KNOWN_S: Final = 1.0


class BatchProgress:
    """The progress of a batch; a context manager.

    Args:
        count: rows of all.
        done, failed: those of them that were answered before, and those that failed then.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        count: int,
        done: int,
        failed: int = 0,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._done, self._clock = count, done, clock
        self._console = console or Console(stderr=True)
        self.failed, self.tokens = failed, 0
        #: when so many rows and tokens were done
        self._marks: deque[tuple[float, int, int]] = deque([(clock(), done, 0)])
        self._said_at = clock()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, console=self._console)
            self._row = self._bar.add_task("", total=count, completed=done, note="")

    def __enter__(self) -> BatchProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, rows: int, failed: int, tokens: int) -> None:
        """Count rows that were answered now."""
        self._done += rows
        self.failed += failed
        self.tokens += tokens
        now = self._clock()
        self._marks.append((now, self._done, self.tokens))
        while len(self._marks) > 2 and self._marks[1][0] <= now - RATE_S:
            self._marks.popleft()
        if self._bar is not None:
            self._bar.update(self._row, completed=self._done, note=self.note())
        elif now - self._said_at >= PLAIN_LINE_S or self._done == self._count:
            self._said_at = now
            self.say(", ".join(filter(None, (f"{self._done}/{self._count}", self.note()))))

    def note(self) -> str:
        """Return rate, tokens, time left and failures, as far as they are known."""
        since_at, rows, tokens = self._marks[0]
        passed_s = self._clock() - since_at
        found: list[str] = []
        if passed_s >= RATE_KNOWN_S and self._done > rows:
            rate = (self._done - rows) / passed_s
            found.append(tr("{rate}/s", rate=f"{rate:.3g}"))
            found.append(tr("{tokens} tokens/s", tokens=f"{(self.tokens - tokens) / passed_s:.0f}"))
            if left := self._count - self._done:
                found.append(tr("{time} left", time=spoken(left / rate)))
        if self.failed:
            found.append(tr("{count} failed", count=self.failed))
        return ", ".join(found)

    def say(self, line: str) -> None:
        """Show one line beside the progress."""
        is_plain = not self._console.is_terminal
        self._console.print(Text(one_line(line, MAX_SAID_CHARS)), soft_wrap=is_plain)

    def why(self, reason: str) -> None:
        """Show why nothing comes."""
        self.say(tr("still waiting: {why}", why=translated(reason)))


def spoken(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
