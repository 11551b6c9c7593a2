"""A recording VFS: every write, truncation and sync of SQLite's files, in order.

The files themselves stay on the real disk; the recording is what a power cut is played from.
The shared-memory file is not recorded: it does not outlive a power cut in any useful way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

VFS_NAME: Final = "d8-recorder"


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written at an offset."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A file was truncated."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """All that was written to the file before is on the disk once this is over."""

    file: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file was removed."""

    file: str


Entry = Write | Cut | Sync | Deleted


class Recorder(apsw.VFS):
    """A VFS over the default one that keeps a list of what happened.

    Thread: as SQLite, one connection.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._base = ""
        super().__init__(VFS_NAME, self._base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        """Open a file, recorded."""
        return _File(self, self._base, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """Remove a file."""
        super().xDelete(filename, syncdir)
        self.entries.append(Deleted(Path(filename).name))


class _File(apsw.VFSFile):
    """One open file."""

    def __init__(
        self,
        recorder: Recorder,
        base: str,
        name: str | apsw.URIFilename | None,
        flags: list[int],
    ) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "temporary").name
        self._entries = recorder.entries
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write and record."""
        super().xWrite(data, offset)
        self._entries.append(Write(self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        """Truncate and record."""
        super().xTruncate(newsize)
        self._entries.append(Cut(self._name, newsize))

    def xSync(self, flags: int) -> None:
        """Sync and record; the disk itself is not waited for."""
        self._entries.append(Sync(self._name))
