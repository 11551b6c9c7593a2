"""How far a pull is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from d8mesh.backends.backend import PullProgress
from d8mesh.backends.services.changes import gigabytes
from d8mesh.words import escaped, tr

#: Plain lines: at most one in so many seconds.
LINE_APART_S: Final = 10.0

Tell = Callable[[str], None]


class PullView(Protocol):
    """Shows how far a pull is."""

    def show(self, progress: PullProgress) -> None:
        """Show it."""

    def close(self) -> None:
        """Show no more."""


def pull_view(model: str, *, tell: Tell, console: Console | None = None) -> PullView:
    """Return what shows the pull of `model` on this process's console."""
    shown = console or Console()
    return PullBar(model, shown) if shown.is_terminal else PullLines(model, tell)


class PullBar:
    """A bar on a terminal; what is printed meanwhile stands above it."""

    def __init__(self, model: str, console: Console) -> None:
        self._bar = ProgressBar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._row = self._bar.add_task(escaped(model), total=None)
        self._bar.start()

    def show(self, progress: PullProgress) -> None:
        """Show it."""
        total = progress.total_bytes or None
        self._bar.update(self._row, completed=progress.completed_bytes, total=total)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class PullLines:
    """A line now and then, for what is no terminal."""

    def __init__(
        self, model: str, tell: Tell, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._tell, self._clock = model, tell, clock
        self._said = clock()

    def show(self, progress: PullProgress) -> None:
        """Say it, if the last time is long enough ago."""
        now = self._clock()
        if now - self._said >= LINE_APART_S and progress.total_bytes:
            self._said = now
            self._tell(
                tr(
                    "pulling {model}: {done} of {all}",
                    model=self._model,
                    done=gigabytes(progress.completed_bytes),
                    all=gigabytes(progress.total_bytes),
                )
            )

    def close(self) -> None:
        """Say nothing: the end is said by who pulls."""
