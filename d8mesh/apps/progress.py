"""How far a run is: a bar on a terminal, plain lines elsewhere; always on stderr.

What comes from the mesh is shown in one bounded line, without control characters.
"""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from d8mesh.words import tr, translated

#: Plain lines go into logs: at most one in this many seconds, and the last.
LINE_S: Final = 1.0
#: What is said of a step that takes longer is said at most once in so many seconds.
NOTE_S: Final = 10.0
PROGRESS_LINE_CHARS: Final = 200
#: Of what is said beside it: a reason may name several workers, each with its own.
MAX_SAID_CHARS: Final = 2000


class Progress:
    """The progress of `total` steps; a context manager."""

    def __init__(self, title: str, total: int, *, console: Console | None = None) -> None:
        self._title, self._total = title, total
        self._console = console or Console(stderr=True)
        self._done = 0
        self._said_at: float | None = None
        self._bar: Bar | None = None
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._row = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, note: str = "") -> None:
        """Count one more step as done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._row, advance=1, note=one_line(note))
            return
        now = time.monotonic()
        is_due = self._said_at is None or now - self._said_at >= LINE_S
        if is_due or self._done == self._total:
            self._said_at = now
            self.say(f"{self._title}: {self._done}/{self._total} {note}".rstrip())

    def note(self, text: str) -> None:
        """Show how far the step is that is under way; plain lines have it now and then."""
        if self._bar is not None:
            self._bar.update(self._row, note=one_line(text))
            return
        now = time.monotonic()
        self._said_at = now if self._said_at is None else self._said_at
        if now - self._said_at >= NOTE_S:
            self._said_at = now
            self.say(f"{self._title}: {text}")

    def say(self, line: str) -> None:
        """Show one line beside the progress."""
        is_plain = not self._console.is_terminal
        self._console.print(Text(one_line(line, MAX_SAID_CHARS)), soft_wrap=is_plain)

    def why(self, reason: str) -> None:
        """Show why nothing comes."""
        self.say(tr("still waiting: {why}", why=translated(reason)))


def one_line(text: str, most: int = PROGRESS_LINE_CHARS) -> str:
    """Return `text` in one line of at most `most` characters, without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * most])
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
