"""Who is at work in a folder: a file that a process has locked for as long as it lives.

The operating system lets the lock go when the process ends, in whatever way. Source: `filelock`
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import filelock

from d8mesh.private import FILE_MODE

#: How often somebody who has it is looked at.
PRESENCE_LOOK_S: Final = 0.05


class Presence:
    """A file that at most one process has.

    Args:
        path: the file; made if missing, and left there.

    Thread: any.
    """

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path, mode=FILE_MODE, thread_local=False)

    def enter(self, patience_s: float = 0.0) -> bool:
        """Have it; return False if another process had it all that time.

        On a disk that knows no locks, or takes no file, nobody sees anybody.
        """
        try:
            self._lock.acquire(timeout=patience_s, poll_interval=PRESENCE_LOOK_S)
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError):
            return True
        return True

    def leave(self) -> None:
        """Let it go, if it is had."""
        self._lock.release()


def is_present(path: Path) -> bool:
    """Return whether another process has the file."""
    if not path.exists():
        return False
    found = Presence(path)
    if not found.enter():
        return True
    found.leave()
    return False
