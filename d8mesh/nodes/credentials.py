"""The keys of this machine's nodes, and what they show of the mesh key."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.protocol.membership import Credentials, mesh_secret
from d8mesh.edge.logs import event
from d8mesh.edge.transport.keys import CLIENT_FOLDER, KeyPair, kept_pair, new_pair
from d8mesh.edge.transport.web_client import WebAccess
from d8mesh.errors import KeyFileError

#: Mesh keys of one process whose secrets are kept: each takes tens of milliseconds to make.
MAX_SECRETS: Final = 8
_log: Final = logging.getLogger("d8mesh.keys")


def client_keys(config: Config) -> KeyPair:
    """Return the key pair of the clients of a data folder.

    Where that folder cannot be used, it is a new one: the orchestrator takes such a client for
    another one at each start.

    Raises:
        KeyFileError: others can read it, or it is no key file.
    """
    try:
        return kept_pair(Path(config.data_dir) / CLIENT_FOLDER)
    except KeyFileError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        event(_log, logging.WARNING, "key.unkept", why=str(error))
        return new_pair()


def credentials_of(config: Config, keys: KeyPair) -> Credentials:
    """Return what a node with these keys shows an orchestrator, and asks of one."""
    return Credentials(keys.public, secret_of(config))


def secret_of(config: Config) -> bytes | None:
    """Return the mesh secret; None: no mesh key is set."""
    return _secret_of(config.mesh_key, config.mesh) if config.mesh_key else None


def web_access(config: Config) -> WebAccess:
    """Return with what the nodes of this machine come to a REST port."""
    return WebAccess(frozenset(config.tls_trust), secret_of(config), config.token)


_secret_of: Final = lru_cache(MAX_SECRETS)(mesh_secret)
