"""The public keys whose files lie in this machine's data folder: its clients', its workers'."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Final

from d8mesh.edge.transport.keys import CLIENT_FOLDER, KEY_FILE, public_key_in

#: Folders of workers that are looked into: as many as a data folder can have.
MAX_WORKER_FOLDERS: Final = 256
#: How old what was found may be for strangers, who may make us look.
LOOK_AGAIN_S: Final = 1.0


class OwnKeys:
    """The keys of a data folder, as they are now.

    Thread: one at a time.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._found: frozenset[bytes] = frozenset()
        self._looked = float("-inf")

    def all(self, *, is_fresh: bool) -> frozenset[bytes]:
        """Return all that there are; those of a moment ago are good enough if not `is_fresh`."""
        if is_fresh or time.monotonic() - self._looked >= LOOK_AGAIN_S:
            workers = islice((self._data / "workers").glob(f"*/{KEY_FILE}"), MAX_WORKER_FOLDERS)
            folders = [self._data / CLIENT_FOLDER, *(path.parent for path in workers)]
            keys = (public_key_in(folder) for folder in folders)
            self._found = frozenset(key for key in keys if key is not None)
            self._looked = time.monotonic()
        return self._found
