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

from d8mesh.errors import KeyFileError

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


def refuse_shared(path: Path, mode: int, otherwise: str) -> None:
    """Refuse a secret that others on this machine can read.

    Args:
        mode: that it has.
        otherwise: what to do where somebody else may have read it.

    Raises:
        KeyFileError: they can.
    """
    if is_open_to_others(mode):
        raise KeyFileError(
            f"{path}: others on this machine can read it (mode {stat.S_IMODE(mode):04o}, expected "
            f"0600). Run: chmod 600 {path}. If somebody else may have read it, {otherwise}. If its "
            "mode stays as it is, the disk knows none (FAT, exFAT): set D8_DATA_DIR to a folder on "
            "another"
        )


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


def write_new(path: Path, content: bytes) -> None:
    """Make a file that is not there yet; what it holds is on the disk when this returns.

    Raises:
        OSError: it cannot be written, or it is there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, by one process at a time; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; the one before is as it was.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # of who was killed: its mode may be another, or it is a link
    try:
        write_new(fresh, content)
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync_names(path.parent)


def make_once(path: Path, text: str) -> None:
    """Make a file with a secret, on the disk when this returns; one that is there stays.

    Of two processes that make it at the same time one writes it.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(path.parent)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        write_new(fresh, text.encode())
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
