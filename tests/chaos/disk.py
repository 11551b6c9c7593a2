"""A small disk of its own for the orchestrator, which can be filled up.

An ext4 file system in a file, mounted through a loop device: syncs are real ones, they go
through to the file and its disk. Linux and root only: ask `unavailable` first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: The journal of half an hour fits well.
SIZE_MB: Final = 512
#: What D8_DISK_RESERVE_MB is on it.
RESERVE_MB: Final = 100
_COMMAND_S: Final = 60.0


@functools.cache
def unavailable() -> str | None:
    """Return None if disks can be made here, else why not."""
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"the command {tool} is missing"
    with tempfile.TemporaryDirectory(prefix="d8-disk-") as folder:
        try:
            with Disk(Path(folder) / "there", size_mb=16):
                return None
        except OSError as error:
            return str(error)


class Disk:
    """A disk mounted at `place`; a context manager that leaves nothing behind.

    Raises:
        OSError: on entering, if it cannot be made or mounted.
    """

    def __init__(self, place: Path, *, size_mb: int = SIZE_MB) -> None:
        self.place = place
        self._image = place.with_name(place.name + ".img")
        self._ballast = place / "ballast"
        self._size_mb = size_mb

    def __enter__(self) -> Self:
        self.place.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(self._size_mb * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        _run("mount", "-o", "loop,noatime", str(self._image), str(self.place))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _run("umount", str(self.place))
        self._image.unlink()

    def fill(self, *, leave_bytes: int) -> None:
        """Leave this much room and no more."""
        with self._ballast.open("ab") as file:
            free = shutil.disk_usage(self.place).free
            while free > leave_bytes:
                try:
                    size = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), size, free - leave_bytes)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    if leave_bytes or free < 65_536:
                        return
                free = min(free // 2, shutil.disk_usage(self.place).free)

    def empty(self) -> None:
        """Take the ballast away."""
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv, capture_output=True, encoding="utf-8", errors="replace", timeout=_COMMAND_S
    )
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
