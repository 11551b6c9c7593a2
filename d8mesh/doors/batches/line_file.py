"""A file of lines that only grows: whole lines on the disk, whatever happened to who wrote it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from d8mesh.errors import DiskLowError

_OWN: Final = 0o600


class LineFile:
    """One such file, open for writing from `open` to `close`.

    Thread: any, one at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        #: what is whole in it
        self.size_bytes = 0

    def open(self, on_line: Callable[[bytes], None]) -> None:
        """Open it, new or as it was left; a torn last line is cut off.

        Args:
            on_line: called with each line that is in it, without its end.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), _OWN)
        file = self._file = os.fdopen(descriptor, "r+b")
        self.size_bytes = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            self.size_bytes += len(line)
            on_line(line[:-1])
        file.truncate(self.size_bytes)
        file.seek(self.size_bytes)

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines, each given without its end; when this returns they are on the disk.

        Raises:
            DiskLowError: they could not be written; none of them is in the file.
        """
        if not lines or self._file is None:
            return
        content = b"\n".join(lines) + b"\n"
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._take_back()
            raise DiskLowError(f"{self.path.name} cannot be written ({error.strerror})") from error
        self.size_bytes += len(content)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _take_back(self) -> None:
        """Go back to what was whole, with a new file object: the old one may still hold a part."""
        self.close()
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.size_bytes)
        self._file = self.path.open("r+b")
        self._file.truncate(self.size_bytes)
        self._file.seek(self.size_bytes)
