"""Who may reach the ports of this process: never strangers by accident."""

from __future__ import annotations

from typing import Final

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import is_admissible
from d8mesh.core.protocol.membership import JoinMode
from d8mesh.errors import ConfigError
from d8mesh.http.access import KnownTokens
from d8mesh.http.guard import Guard
from d8mesh.nodes.credentials import secret_of

#: Addresses that stand for all, or for this machine.
_NO_ADDRESS_OF_ONE: Final = frozenset({"0.0.0.0", "::", "localhost"})


def guard_of(config: Config, tokens: KnownTokens | None = None) -> Guard:
    """Return what guards an HTTP port: closed with a mesh key, or where keys are approved.

    Args:
        tokens: None where there are none: the mesh key alone opens it.
    """
    return Guard(
        config.allowed_hosts,
        keys=() if config.mesh_key is None else (config.mesh_key,),
        allows_public=config.allow_public,
        is_closed=config.join == JoinMode.APPROVE.value,
        secret=secret_of(config),
        tokens=tokens,
    )


def refuse_public(config: Config) -> None:
    """Never listen on a public address by accident: it takes a key, which keeps strangers out.

    Raises:
        ConfigError: FLASK_HOST is public, and the mesh is not both closed and opened to it.
    """
    host = config.web_host
    if host in _NO_ADDRESS_OF_ONE or is_admissible(host):
        return
    if not (config.mesh_key and config.allow_public):
        raise ConfigError(
            f"FLASK_HOST={host!r} is a public address: expected a private one, or D8_MESH_KEY "
            "and D8_ALLOW_PUBLIC=1"
        )
