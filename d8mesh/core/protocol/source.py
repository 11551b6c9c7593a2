"""Where a task came from, as text: the door that it came in by, the caller's address and program.

It travels in `Group.source` and is kept with the task, for people who look at lists of tasks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from d8mesh.core.protocol.frames import MAX_SOURCE_CHARS

#: Doors whose tasks nobody awaits at an open connection: lines of batches.
BATCH_DOORS: Final = frozenset({"batch", "batches"})


class TaskSource(NamedTuple):
    """A door and who called there; what is not known is empty."""

    door: str
    address: str = ""
    program: str = ""

    def text(self) -> str:
        """Return it as it travels: a line of at most `MAX_SOURCE_CHARS` printable characters."""
        told = f"{_word(self.door)} {_word(self.address)} {self.program}"
        clean = "".join(each if each.isprintable() else " " for each in told)
        return clean[:MAX_SOURCE_CHARS].strip()

    @property
    def caller(self) -> str:
        """Who called, for people: the address and the program."""
        return " ".join(part for part in (self.address, self.program) if part)


def source_of(text: str) -> TaskSource:
    """Return what a source's text says; an empty one came in by no door."""
    door, _, rest = text.partition(" ")
    address, _, program = rest.partition(" ")
    return TaskSource(door, "" if address == _NO_WORD else address, program)


def is_waited_for(text: str) -> bool:
    """Return whether somebody waits at a door for the end of a task of this source."""
    return bool(text) and text.partition(" ")[0] not in BATCH_DOORS


#: Stands for a word that is not known.
_NO_WORD = "-"


def _word(text: str) -> str:
    return "".join(text.split()) or _NO_WORD
