"""The data folder: made and tried before anything relies on it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from d8mesh.errors import ConfigError
from d8mesh.private import is_writable_by_others, make_folder, narrow

#: What lies in a data folder, beside the pins.
_ROOMS: Final = frozenset({"orchestrator", "workers", "client", "logs", "batches"})
#: Keys: one that others can read is refused by whoever reads it. Closed here in silence, a key that
#: somebody else may have read would go on being good.
_SECRETS: Final = frozenset({"curve.key", "payload.key", "key.pem"})
#: Files that say who may come in: one that others can write is refused as well, for what they wrote
#: there would go on being good.
_DECIDING: Final = frozenset({"members.json", "tokens.json"})
#: Files looked at in each room: more than a room has, unless it is somebody else's folder.
MAX_FILES: Final = 2000


def require(data: Path, *rooms: str) -> None:
    """Make the folders `rooms` in the data folder, and make sure that they can be written.

    They, and the files in them but for keys, are closed to other users of this machine. So is the
    data folder itself, if nothing but ours is in it: one that has other things may be shared on
    purpose.

    What lies in them must be writable too: a start as another user (``sudo``) leaves files that
    this one could not use, and the fault would come to light in the middle of the work.

    Raises:
        ConfigError: one of them cannot be made or written; it names D8_DATA_DIR.
    """
    _refuse_odd_name(data)
    for room in rooms:
        folder = data / room
        try:
            make_folder(folder)
            for each in _all_in(folder):
                if not _is_refused_later(each):
                    narrow(each)
            found = next((each for each in _all_in(folder) if not _is_writable(each)), None)
            why = "" if found is None else f"not writable: {str(found)[:200]}{_whose(found)}"
        except OSError as error:
            why = f"{error.strerror or error}: {str(folder)[:200]}{_whose_is_above(data, folder)}"
        if why:
            raise ConfigError(
                f"D8_DATA_DIR={str(data)[:200]!r}: expected a folder that can be written ({why})"
            )

    with contextlib.suppress(OSError):
        if all(_is_ours(each.name) for each in islice(data.iterdir(), MAX_FILES)):
            narrow(data)


def _is_refused_later(path: Path) -> bool:
    """Return whether closing a file to others would hide what its reader has to see."""
    if path.name in _SECRETS:
        return True
    return path.name in _DECIDING and is_writable_by_others(path.lstat().st_mode)


def _is_ours(name: str) -> bool:
    return name in _ROOMS or name.startswith("pins.")


def _refuse_odd_name(data: Path) -> None:
    try:
        str(data).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"D8_DATA_DIR={str(data)[:200]!r}: expected a folder whose name is UTF-8"
        ) from error


def _all_in(folder: Path) -> Iterator[Path]:
    """Yield the folder, and what is in it and in the folders in it, so far as it can be read."""
    yield folder
    below = (each for pattern in ("*", "*/*") for each in folder.glob(pattern))
    yield from islice(below, MAX_FILES)


def _is_writable(path: Path) -> bool:
    if path.is_dir():
        return os.access(path, os.W_OK | os.X_OK | os.R_OK)
    return not path.is_file() or os.access(path, os.W_OK | os.R_OK)


def _whose_is_above(data: Path, folder: Path) -> str:
    """Tell of the nearest folder above that is there; one above `data` is nobody's to give."""
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
    if there.is_relative_to(data):
        return _whose(there)
    return f", as {str(there)[:200]} may not be written: set another D8_DATA_DIR"


def _whose(path: Path) -> str:
    """Tell who owns what cannot be written, if that is somebody else, and what to do."""
    if sys.platform == "win32":
        return ""
    import pwd

    try:
        owner = path.lstat().st_uid
    except OSError:
        return ""
    if owner == os.geteuid():
        return ""
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"user {owner}"
    return f", which belongs to {name}: give it to this user (chown -R), or set another D8_DATA_DIR"
