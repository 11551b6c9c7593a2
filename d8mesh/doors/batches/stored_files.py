"""Files of clients on the disk: what they are called there is ours, what is known of them durable.

The content of `file-ID` is ``file-ID.data``, what is known of it ``file-ID.json``, which is there
only when the content is whole. Content without it belongs to a batch that writes it, or to nobody.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from d8mesh.edge.room import disk_free_bytes
from d8mesh.errors import DiskLowError, QueueFullError
from d8mesh.private import make_folder

#: Files at a time, all together: each takes half a kilobyte of memory.
MAX_STORED: Final = 10_000
#: This much of the disk stays free beside the orchestrator's own reserve.
_SPARE_BYTES: Final = 16 * 1024 * 1024
_ID: Final = re.compile(r"file-[0-9a-f]{24}")
_OWN: Final = 0o600
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file."""

    id: str
    size_bytes: int
    #: Unix seconds
    created_at: int
    name: str
    purpose: str
    #: Unix seconds; None: it stays
    expires_at: int | None = None


class FileFolder:
    """The files of one folder.

    Args:
        folder: made if it is not there.
        reserve_bytes: of the disk, that must stay free.

    Thread: the index is the loop's; `write_note` and `read_notes` may run on any.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self._folder, self._reserve_bytes = folder, reserve_bytes
        #: in the order of their making
        self._files: dict[str, StoredFile] = {}

    def open(self, kept: Iterable[str]) -> None:
        """Read what is there; content that belongs to nobody is removed.

        Args:
            kept: ids of files that are still being written.
        """
        with contextlib.suppress(OSError):  # who writes a file is told why that fails
            make_folder(self._folder)
        found: list[StoredFile] = []
        for note in self._folder.glob("file-*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(note.read_bytes(), type=StoredFile))
        self._files = {each.id: each for each in sorted(found, key=_order)}
        owned = {*self._files, *kept}
        for path in self._folder.glob("*"):
            if path.name.partition(".")[0] not in owned and not path.name.endswith(".json"):
                with contextlib.suppress(OSError):
                    path.unlink()

    @staticmethod
    def new_id() -> str:
        """Return an id that is not in use."""
        return f"file-{secrets.token_hex(12)}"

    def path(self, file_id: str) -> Path:
        """Return where the content of a file is; the id must be one of ours."""
        if not _ID.fullmatch(file_id):
            raise ValueError(f"no id of a file: {file_id!r:.60}")
        return self._folder / f"{file_id}.data"

    def find(self, file_id: str) -> StoredFile | None:
        """Return what is known of a file; None: there is none of this id."""
        return self._files.get(file_id)

    def listed(self) -> Iterator[StoredFile]:
        """Return all files, the oldest first."""
        return iter(list(self._files.values()))

    def check_room(self, size_bytes: int) -> None:
        """Make sure that so many bytes fit.

        Raises:
            DiskLowError: they do not.
            QueueFullError: there are too many files.
        """
        if len(self._files) >= MAX_STORED:
            raise QueueFullError(f"there are {MAX_STORED} files: delete some of them first")
        free = disk_free_bytes(self._folder)
        if free is not None and free - size_bytes < self._reserve_bytes + _SPARE_BYTES:
            told = f"{size_bytes} bytes do not fit: {free} are free on the orchestrator's disk"
            raise DiskLowError(f"{told}, and {self._reserve_bytes} of them stay so")

    def write_note(self, file: StoredFile) -> None:
        """Have it durable what is known of a file; its content is whole and on the disk."""
        note = self._folder / f"{file.id}.json"
        write_durably(note, msgspec.json.encode(file))

    def add(self, file: StoredFile) -> None:
        """Show a file, whose note is written."""
        self._files[file.id] = file

    def remove(self, file_id: str) -> None:
        """Remove a file: first what is known of it, then its content."""
        self._files.pop(file_id, None)
        for suffix in ("json", "data"):
            with contextlib.suppress(OSError):
                (self._folder / f"{file_id}.{suffix}").unlink()

    def expire(self, now_at: float, *, in_use: Callable[[str], bool]) -> list[str]:
        """Remove the files whose time is over, but for those in use; return their ids."""
        over = [
            each.id
            for each in self._files.values()
            if each.expires_at is not None and each.expires_at <= now_at and not in_use(each.id)
        ]
        for file_id in over:
            self.remove(file_id)
        return over


def write_durably(path: Path, content: bytes) -> None:
    """Have a small file on the disk, whole, in the place of the one before.

    Raises:
        DiskLowError: it could not be written; the one before is still there.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        with os.fdopen(os.open(beside, _WRITE_FLAGS | os.O_TRUNC, _OWN), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise DiskLowError(f"{path.name} cannot be written ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system knows that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _order(file: StoredFile) -> tuple[int, str]:
    return file.created_at, file.id
