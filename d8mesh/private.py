"""Files and folders that nobody else on this machine may read, whatever the umask says.

On Windows the folder of the user keeps others out: modes mean nothing there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
#: Whoever else may read or write a file.
OTHERS_BITS: Final = stat.S_IRWXG | stat.S_IRWXO


def is_writable_by_others(mode: int) -> bool:
    """Return whether others than its owner may write what has this mode."""
    return sys.platform != "win32" and bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def is_open_to_others(mode: int) -> bool:
    """Return whether others than its owner may read or write what has this mode."""
    return sys.platform != "win32" and bool(mode & OTHERS_BITS)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above that are missing, for this user alone.

    One that is there is closed to others if it belongs to this user.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.exists() and not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)
    narrow(folder)


def make_file(path: Path) -> None:
    """Have an empty file there, for this user alone; what one that is there holds stays.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE))
    narrow(path)


def narrow(path: Path) -> None:
    """Close a file or folder to others; one of another user, or a link, stays as it is."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if is_open_to_others(mode) and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & ~OTHERS_BITS)


def sync_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system knows that.

    What was put in place there stays so, whatever happens to the power.
    """
    if sys.platform == "win32":
        return  # folders cannot be opened there; the file system logs their entries
    with contextlib.suppress(OSError):  # some file systems sync no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step.

    Raises:
        OSError: it cannot be written; the one before is as it was.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # one of another mode, or a link
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def make_once(path: Path, text: str) -> None:
    """Make a file with a secret, on the disk when this returns; one that is there stays.

    Of two processes that make it at the same time one writes it.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(path.parent)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)  # unlike a rename, it leaves what is there already
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                fresh.replace(path)
        sync_names(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
