"""Key files: the Curve25519 pair of a node, made at its first start and kept.

The secret lies in a file that nobody else may read; one that others can read is refused, as
whoever read it may be anybody by now.

Source: https://api.zeromq.org/4-3:zmq-curve-keypair; ``docs/SECURITY.md``
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from d8mesh.errors import KeyFileError
from d8mesh.private import make_once, refuse_shared

#: The file in the folder of an orchestrator, of a worker, and of the clients of a data folder.
KEY_FILE: Final = "curve.key"
#: The folder of the clients' key in the data folder.
CLIENT_FOLDER: Final = "client"
#: The file is tiny; a larger one is not ours.
MAX_KEY_FILE_BYTES: Final = 1024
_SECRET: Final = re.compile(r"^secret ([0-9a-f]{64})$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair of Curve25519: 32 bytes each. The secret is never shown."""

    public: bytes
    secret: bytes = field(repr=False)


def new_pair() -> KeyPair:
    """Return a new pair that is written nowhere."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def kept_pair(folder: Path) -> KeyPair:
    """Return the pair of a folder; a new one if it has none.

    Two processes that make one at the same time end up with the same.

    Raises:
        KeyFileError: others can read the file, it is no key file, or it cannot be written.
    """
    path = folder / KEY_FILE
    try:
        pair = _read(path)
        return pair if pair is not None else _made(path)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error


def public_key_in(folder: Path) -> bytes | None:
    """Return the public key of a folder's pair; None if there is none that can be read."""
    with contextlib.suppress(OSError, KeyFileError):
        pair = _read(folder / KEY_FILE)
        return None if pair is None else pair.public
    return None


def _read(path: Path) -> KeyPair | None:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    refuse_shared(path, mode, "delete it instead: a new key is made at the next start")
    is_sound = len(text) <= MAX_KEY_FILE_BYTES
    found = _SECRET.search(text.decode("ascii", "replace")) if is_sound else None
    if found is None:
        raise KeyFileError(
            f"{path}: expected a line 'secret' with 64 hex digits. Bring it back from a copy, or "
            "delete it: a new key is made at the next start"
        )
    secret = bytes.fromhex(found[1])
    return KeyPair(z85.decode(zmq.curve_public(z85.encode(secret))), secret)


def _made(path: Path) -> KeyPair:
    pair = new_pair()
    lines = (
        "# The secret key of this d8mesh node. Whoever has it is taken for this node.",
        f"secret {pair.secret.hex()}",
    )
    make_once(path, "\n".join(lines) + "\n")
    return _read(path) or pair
