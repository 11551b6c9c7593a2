"""The key file of encrypted payloads, beside the journal or outbox that it opens.

Without it nothing that was encrypted can be read: it belongs into every backup, apart from the file
that it opens.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

from d8mesh.edge.sqlite.seal import SEAL_KEY_BYTES
from d8mesh.errors import KeyFileError
from d8mesh.private import make_once, refuse_shared

PAYLOAD_KEY_FILE: Final = "payload.key"
#: The file is tiny; a larger one is not ours.
_MAX_BYTES: Final = 1024
_KEY_LINE: Final = re.compile(r"^payload ([0-9a-f]{64})$", re.ASCII | re.MULTILINE)


def kept_payload_key(folder: Path) -> bytes:
    """Return the key of a folder; a new one if it has none.

    Raises:
        KeyFileError: others can read the file, it is no key file, or it cannot be written.
    """
    key = payload_key_in(folder)
    if key is not None:
        return key
    made = secrets.token_bytes(SEAL_KEY_BYTES)
    text = (
        "# Opens the encrypted payloads of the files beside it: keep a copy elsewhere. Without it\n"
        f"# they cannot be read by anybody.\npayload {made.hex()}\n"
    )
    path = folder / PAYLOAD_KEY_FILE
    try:
        make_once(path, text)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error
    return payload_key_in(folder) or made


def payload_key_in(folder: Path) -> bytes | None:
    """Return the key of a folder; None if it has none.

    Raises:
        KeyFileError: others can read the file, it is no key file, or it cannot be read.
    """
    path = folder / PAYLOAD_KEY_FILE
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error
    refuse_shared(
        path,
        mode,
        "after that start once with D8_ENCRYPT=0, which reads with it what is there; then delete "
        "it, and start with D8_ENCRYPT=1: a new key is made",
    )
    found = _KEY_LINE.search(text.decode("ascii", "replace")) if len(text) <= _MAX_BYTES else None
    if found is None:
        raise KeyFileError(
            f"{path}: expected a line 'payload' with 64 hex digits. Put the copy of it back that "
            "was kept; nothing was changed"
        )
    return bytes.fromhex(found[1])
