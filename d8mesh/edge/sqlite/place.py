"""Whether a journal may be used where it lies: nobody else holds it, the disk is a local one,
and what SQLite's refusal of it means."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import apsw
import filelock

from d8mesh.edge.sqlite.schema import NOTE_SUFFIX, SCHEMA_VERSION, fetch
from d8mesh.errors import JournalBrokenError, JournalError, JournalHeldError
from d8mesh.private import FILE_MODE, replace_file
from d8mesh.program import command_name

#: What a share of Windows is called here; Windows itself has no word for its protocol.
_REMOTE: Final = "remote"
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs", "ceph"),
        *("afpfs", "webdav", "ftp", "macfuse", "osxfuse", _REMOTE),  # macOS, Windows
    }
)
_MOUNTS: Final = Path("/proc/self/mounts")
#: A row of mount(8) of macOS; the device may be a URL with blanks, the kind is one word.
_MOUNT_ROW: Final = re.compile(r".+? on (/.*) \(([^,()]+)(?:,[^()]*)?\)")
#: The command takes milliseconds; a hanging one must not hold up a start.
MOUNT_S: Final = 5.0
#: GetDriveTypeW's answer for a network drive (winbase.h).
_DRIVE_REMOTE: Final = 4
#: What passes, or is not the file's fault: a start later may well do.
_OF_THE_MACHINE: Final = (
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
        JournalError: the file of the lock cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path, mode=FILE_MODE, blocking=False, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise held(path.with_suffix("")) from error
        except OSError as error:
            raise JournalError(
                f"{path.with_suffix('')} cannot be used ({error.strerror or error}): let this user "
                "write in its folder, or set another D8_DATA_DIR"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk: it is for people only
            replace_file(path.with_suffix(".holder"), f"process {os.getpid()}".encode())

    def close(self) -> None:
        """Let it go."""
        self._lock.release()


def held(path: Path) -> JournalHeldError:
    """Return the refusal of a journal that another orchestrator uses, which says who that is."""
    who = "an unknown process"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        who = path.with_name(path.name + ".holder").read_text("utf-8")[:100]
    return JournalHeldError(
        f"{path} is in use by another orchestrator ({who}): stop it first, or give this one its "
        "own D8_DATA_DIR"
    )


def refusal(path: Path, error: Exception) -> JournalError:
    """Return what to raise when `error` came up while the file was opened."""
    if isinstance(error, (*_OF_THE_MACHINE, OSError)):
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


def version_of(db: apsw.Connection, path: Path) -> int:
    """Return the schema version that a journal names, 0 if it names none.

    Raises:
        JournalBrokenError: it is newer than what is known here.
    """
    found = fetch(db, "SELECT value FROM meta WHERE name = 'schema'")
    version = found[0][0] if found and isinstance(found[0][0], int) else 0
    if version > SCHEMA_VERSION:
        raise JournalBrokenError(
            f"{path} has schema version {version}, this d8mesh knows {SCHEMA_VERSION}: "
            "it is not damaged; use the d8mesh that wrote it, or a newer one"
        )
    return version


def refuse_half_recovered(path: Path) -> None:
    """Refuse a folder in which a recovery was interrupted while it moved files."""
    if path.with_name(path.name + NOTE_SUFFIX).exists():
        raise broken(path, "a recovery was interrupted")


def refuse_network_disk(path: Path) -> None:
    """Refuse file systems on which SQLite's locks and syncs are not to be trusted.

    Where the system does not say what a folder is on, it is taken for a disk of this machine.
    """
    folder = path.parent.resolve()
    kind = _KINDS.get(str(sys.platform), _kind_on_linux)(folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise JournalBrokenError(
            f"{folder} is on a network file system ({kind}), which cannot keep a journal safe: "
            "set D8_DATA_DIR to a folder on a disk of this machine"
        )


def _kind_on_linux(folder: Path) -> str:
    """Return the file system by proc(5): blanks and the like in a path are octal escapes."""
    try:
        text = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    rows = [line.split(" ") for line in text.splitlines()]
    return _nearest(
        folder,
        (
            (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), row[1]), row[2])
            for row in rows
            if len(row) > 2
        ),
    )


def _kind_on_macos(folder: Path) -> str:
    """Return the file system by mount(8): ``DEVICE on POINT (KIND, OPTION, …)``.

    It prints what the kernel has in its table, and does not ask a server that may hang.
    """
    try:
        done = subprocess.run(
            ["/sbin/mount"], stdin=subprocess.DEVNULL, capture_output=True, timeout=MOUNT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = done.stdout.decode("utf-8", "surrogateescape")
    rows = (_MOUNT_ROW.fullmatch(line) for line in text.splitlines())
    return _nearest(folder, ((row[1], row[2]) for row in rows if row is not None))


def _kind_on_windows(folder: Path) -> str:
    """Return "remote" for a share, also one with a letter of its own, else ""."""
    anchor = folder.anchor
    if anchor.startswith("\\\\"):
        return _REMOTE
    import ctypes

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - only Windows has it
    return _REMOTE if kernel.GetDriveTypeW(anchor) == _DRIVE_REMOTE else ""


def _nearest(folder: Path, mounts: Iterable[tuple[str, str]]) -> str:
    """Return the kind of the mount that `folder` is on; of two at one point the later one."""
    best, kind = "", ""
    for point, found in mounts:
        is_above = str(folder) == point or str(folder).startswith(point.rstrip("/") + "/")
        if point and is_above and len(point) >= len(best):
            best, kind = point, found
    return kind


_KINDS: Final[Mapping[str, Callable[[Path], str]]] = {
    "darwin": _kind_on_macos,
    "win32": _kind_on_windows,
}
