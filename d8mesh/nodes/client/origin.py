"""What a client begins with: its settings, checked, and a session with a new name."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Final

from d8mesh.config import Config
from d8mesh.core.addresses import parse_endpoint
from d8mesh.core.client_session import ClientSession
from d8mesh.errors import ConfigError

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_SESSION_CHARS: Final = 16
#: Of this machine's name, as much as the orchestrator is told.
MAX_HOST_CHARS: Final = 100


def settings_of(
    url: str | None, endpoint: str | None, config: Config | None
) -> tuple[Config, str | None]:
    """Return the settings, and the URL of an orchestrator if one is known.

    Raises:
        ConfigError: `url` or `endpoint` is not of its form.
    """
    config = Config.from_env(os.environ) if config is None else config
    for name, given in (("url", url), ("endpoint", endpoint)):
        if given is not None and not isinstance(given, str):
            raise ConfigError(f"{name}: saw {given!r:.80}, expected a text, or None")
    if url is not None:
        url = Config.from_env({"ORCHESTRATOR_URL": url}).orchestrator_url
    if endpoint is not None:
        parse_endpoint(endpoint)
    return config, url or config.orchestrator_url


def new_session(mesh: str) -> ClientSession:
    """Return a session with a name that nobody has had before."""
    name = "".join(secrets.choice(_ALPHABET) for _ in range(_SESSION_CHARS))
    return ClientSession(name, mesh, socket.gethostname()[:MAX_HOST_CHARS])
