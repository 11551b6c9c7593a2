"""Whether a journal may be used where it lies: nobody else holds it, the disk is a local one,
and what SQLite's refusal of it means."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import apsw
import filelock

from d8mesh.edge.journal.schema import NOTE_SUFFIX
from d8mesh.errors import JournalBrokenError, JournalError, JournalHeldError
from d8mesh.program import command_name

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs", "ceph"}
)
#: What passes, or is not the file's fault: a start later may well do.
_PASSING: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.NoMemError,
)


class Lock:
    """An operating-system lock on a file of its own, never on the database.

    Closing any descriptor of a database file drops SQLite's own locks on POSIX.

    Raises:
        JournalHeldError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path, blocking=False, thread_local=False)
        holder = path.with_suffix(".holder")
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            who = holder.read_text("utf-8")[:100] if holder.exists() else "unknown"
            raise JournalHeldError(
                f"{path.with_suffix('')} is in use by another orchestrator ({who}): stop it "
                "first, or give this one its own D8_DATA_DIR"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk: it is for people only
            holder.write_text(f"process {os.getpid()}", "utf-8")

    def close(self) -> None:
        """Let it go."""
        self._lock.release()


def refuse_held(path: Path) -> None:
    """Refuse a journal that another orchestrator uses; does nothing else.

    Raises:
        JournalHeldError: another process has it.
    """
    lock = path.with_name(path.name + ".lock")
    if lock.exists():
        Lock(lock).close()


def refusal(path: Path, error: Exception) -> JournalError:
    """Return what to raise when `error` came up while the file was opened."""
    if isinstance(error, (*_PASSING, OSError)):
        return JournalError(
            f"{path} cannot be used now ({error}): make room on its disk, or look after the disk"
        )
    return broken(path, str(error) or type(error).__name__)


def broken(path: Path, why: str) -> JournalBrokenError:
    """Return the refusal of a damaged file, which says what to do."""
    folder = path.parent.parent if path.parent.name == "orchestrator" else path.parent
    return JournalBrokenError(
        f"{path} is damaged and cannot be read as a journal ({why}). `{command_name()} recover "
        f"--data {folder}` saves what can be read of it; or put a backup in its place, "
        f"and remove {path.name}-wal and {path.name}-shm"
    )


def refuse_half_recovered(path: Path) -> None:
    """Refuse a folder in which a recovery was interrupted while it moved files."""
    if path.with_name(path.name + NOTE_SUFFIX).exists():
        raise broken(path, "a recovery was interrupted")


def refuse_network_disk(path: Path) -> None:
    """Refuse file systems on which SQLite's locks and syncs are not to be trusted (Linux)."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    folder = str(path.parent.resolve())
    best, kind = "", ""
    for line in mounts.read_text("utf-8", "replace").splitlines():
        fields = line.split(" ")
        point = fields[1].encode().decode("unicode_escape") if len(fields) > 2 else ""
        is_above = folder == point or folder.startswith(point.rstrip("/") + "/")
        if point and is_above and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise JournalBrokenError(
            f"{folder} is on a network file system ({kind}), which cannot keep a journal safe: "
            "set D8_DATA_DIR to a folder on a disk of this machine"
        )
