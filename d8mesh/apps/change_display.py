"""How far changes are, a row for each machine: bars on a terminal, lines or JSON elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from d8mesh.apps.progress import one_line
from d8mesh.apps.tables import size_text
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.words import tr, translated

#: Plain lines go into logs: of each machine at most one in this many seconds.
STEP_LINE_S: Final = 2.0

#: Narrower terminals are shown no speeds and times.
WIDE_COLUMNS: Final = 80

Step = Mapping[str, Any]


class ChangeDisplay(Protocol):
    """Shows how far changes are; a context manager."""

    def __enter__(self) -> ChangeDisplay:
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave what was shown."""

    def begin(self, label: str, task_id: str) -> None:
        """A change was accepted."""

    def step(self, label: str, step: Step) -> None:
        """It is so far: ``status``, ``completed`` of ``total`` bytes (0: unknown)."""

    def say(self, label: str, text: str) -> None:
        """Show a line beside it."""

    def done(self, label: str, text: str) -> None:
        """It succeeded."""

    def failed(self, label: str, why: str, code: str) -> None:
        """It failed."""


def display_for(name: str, *, is_json: bool) -> ChangeDisplay:
    """Return what shows changes of a model, as standard error and the options ask for it."""
    if is_json:
        return ChangesAsJson(name)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return ChangeBars(Console(stderr=True)) if is_terminal else ChangeLines()


class ChangesAsJson:
    """One JSON object a line, on standard output."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ids: dict[str, str] = {}

    def __enter__(self) -> ChangesAsJson:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def begin(self, label: str, task_id: str) -> None:
        self._ids[label] = task_id
        self._say(label, state="submitted")

    def step(self, label: str, step: Step) -> None:
        told = {key: step.get(key) for key in ("status", "completed", "total")}
        self._say(label, state="running", **told)

    def say(self, label: str, text: str) -> None:
        tell(tr("{id}: {what}", id=label, what=text) if label else text)

    def done(self, label: str, text: str) -> None:
        self._say(label, state="completed")

    def failed(self, label: str, why: str, code: str) -> None:
        self._say(label, state="failed", error=why, code=code)

    def _say(self, label: str, **what: object) -> None:
        who = {"machine": label, "model": self._name, "task_id": self._ids.get(label)}
        say(as_json(who | what))


class ChangeLines:
    """Plain lines on standard error, and how it ended on standard output."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}

    def __enter__(self) -> ChangeLines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def begin(self, label: str, task_id: str) -> None:
        tell(tr("{id}: {what}", id=label, what=tr("task {id} submitted", id=task_id)))

    def step(self, label: str, step: Step) -> None:
        now = time.monotonic()
        if now - self._said_at.get(label, -STEP_LINE_S) < STEP_LINE_S:
            return
        self._said_at[label] = now
        tell(tr("{id}: {what}", id=label, what=step_text(step)))

    def say(self, label: str, text: str) -> None:
        tell(tr("{id}: {what}", id=label, what=text) if label else text)

    def done(self, label: str, text: str) -> None:
        say(tr("{id}: {what}", id=label, what=text))

    def failed(self, label: str, why: str, code: str) -> None:
        told = tr("{id}: {what}", id=label, what=translated(why))
        tell(tr("error: {why}", why=told))


class ChangeBars:
    """A bar for each machine on standard error, and how it ended on standard output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        note = Column(no_wrap=True, overflow="ellipsis")
        is_wide = console.width >= WIDE_COLUMNS
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if is_wide else 10),
            DownloadColumn(table_column=Column(no_wrap=True)),
            *((TransferSpeedColumn(), TimeRemainingColumn()) if is_wide else ()),
            TextColumn("{task.fields[note]}", markup=False, table_column=note),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        self._endings: list[str] = []

    def __enter__(self) -> ChangeBars:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for ending in self._endings:
            say(ending)

    def begin(self, label: str, task_id: str) -> None:
        self._rows[label] = self._bar.add_task(one_line(label), total=None, note="")

    def step(self, label: str, step: Step) -> None:
        total = int(step.get("total") or 0) or None
        note = one_line(status_text(step))
        self._bar.update(
            self._rows[label], completed=int(step.get("completed") or 0), total=total, note=note
        )

    def say(self, label: str, text: str) -> None:
        told = tr("{id}: {what}", id=label, what=text) if label else text
        self._console.print(Text(told))

    def done(self, label: str, text: str) -> None:
        total = self._bar.tasks[self._rows[label]].total
        if total is not None:
            self._bar.update(self._rows[label], completed=total)
        self._end(label, text)
        self._endings.append(tr("{id}: {what}", id=label, what=text))

    def failed(self, label: str, why: str, code: str) -> None:
        self._end(label, tr("failed"))
        told = tr("{id}: {what}", id=label, what=translated(why))
        self._console.print(Text(tr("error: {why}", why=told)))

    def _end(self, label: str, note: str) -> None:
        row = self._rows.get(label)
        if row is not None:
            self._bar.update(row, note=one_line(note))
            self._bar.stop_task(row)


def step_text(step: Step) -> str:
    """Return how far a change is, in words."""
    completed, total = int(step.get("completed") or 0), int(step.get("total") or 0)
    if not total:
        return status_text(step)
    return tr(
        "{status}, {done} of {total} ({percent} %)",
        status=status_text(step),
        done=size_text(completed) if completed else "0",
        total=size_text(total),
        percent=100 * completed // total,
    )


def status_text(step: Step) -> str:
    """Return what Ollama says that it does, in the language in use."""
    return translated(one_line(str(step.get("status") or "")))
