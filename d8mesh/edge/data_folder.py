"""The data folder: made and tried before anything relies on it."""

from __future__ import annotations

import os
from pathlib import Path

from d8mesh.errors import ConfigError


def require(data: Path, *rooms: str) -> None:
    """Make the folders `rooms` in the data folder, and make sure that they can be written.

    Raises:
        ConfigError: one of them cannot be made or written; it names D8_DATA_DIR.
    """
    for room in rooms:
        folder = data / room
        try:
            folder.mkdir(parents=True, exist_ok=True)
            why = "" if os.access(folder, os.W_OK | os.X_OK) else "not writable"
        except OSError as error:
            why = error.strerror or str(error)
        if why:
            raise ConfigError(
                f"D8_DATA_DIR={str(data)[:200]!r}: expected a folder that can be written ({why}: "
                f"{str(folder)[:200]})"
            )
