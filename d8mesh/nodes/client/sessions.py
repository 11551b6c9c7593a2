"""A client's brain with a name that nobody has had before."""

from __future__ import annotations

import secrets
import socket
from typing import Final

from d8mesh.core.client_session import ClientSession

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_SESSION_CHARS: Final = 16
#: Of this machine's name, as much as the orchestrator is told.
MAX_HOST_CHARS: Final = 100


def new_session(mesh: str) -> ClientSession:
    """Return a session whose name is drawn at random."""
    name = "".join(secrets.choice(_ALPHABET) for _ in range(_SESSION_CHARS))
    return ClientSession(name, mesh, socket.gethostname()[:MAX_HOST_CHARS])
