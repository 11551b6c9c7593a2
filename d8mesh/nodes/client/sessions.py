"""A client's brain with a name that nobody has had before."""

from __future__ import annotations

import secrets
from typing import Final

from d8mesh.core.client.session import ClientSession
from d8mesh.edge.network import host_name

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_SESSION_CHARS: Final = 16


def new_session(mesh: str) -> ClientSession:
    """Return a session whose name is drawn at random."""
    name = "".join(secrets.choice(_ALPHABET) for _ in range(_SESSION_CHARS))
    return ClientSession(name, mesh, host_name())
