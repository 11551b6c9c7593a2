"""Where a run leaves its results: a folder of its own, files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Final

from d8mesh.errors import D8Error

#: Runs that may start in one second.
MAX_RUNS: Final = 1000


def new_folder(parent: Path) -> Path:
    """Make a folder in `parent` named by the local time, and return it.

    Raises:
        D8Error: it could not be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for n in range(1, MAX_RUNS):
        folder = parent / (stamp if n == 1 else f"{stamp}-{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _refused(folder, error) from error
        return folder
    raise D8Error(f"{parent} has {MAX_RUNS} folders of this second: try again")


def result_folder(given: Path | None, parent: Path) -> Path:
    """Return the folder `given`, made unless it is there; without one, a new one in `parent`.

    Raises:
        D8Error: it could not be made, or is no folder.
    """
    folder = given or new_folder(parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, sees the old or the new file.

    Raises:
        D8Error: it could not be written.
    """
    draft: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=".draft-", delete=False
        ) as file:
            draft = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)  # a temporary file is its owner's alone; results are to be shared
        draft.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> D8Error:
    reason = error.strerror or type(error).__name__
    return D8Error(f"{path} cannot be written ({reason}): free it, or choose another --output")
