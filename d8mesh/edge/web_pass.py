"""What our own nodes show at an orchestrator's HTTP port.

Never the mesh key itself: it would cross the network in clear, and whoever has it can be a worker
or an orchestrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from d8mesh.config import Config
from d8mesh.core.protocol.membership import (
    announced_proof,
    is_same_proof,
    mesh_secret,
    web_pass,
)


def credential(config: Config) -> str | None:
    """Return what is shown: D8_TOKEN, or what is made of D8_MESH_KEY; None: there is neither."""
    if config.token is not None:
        return config.token
    secret = secret_of_mesh(config)
    return None if secret is None else web_pass(secret)


def bearer(config: Config) -> dict[str, str]:
    """Return the header that shows it, if there is one."""
    shown = credential(config)
    return {} if shown is None else {"Authorization": f"Bearer {shown}"}


def bearer_for(config: Config, told: Mapping[str, object], *, is_given: bool) -> dict[str, str]:
    """Return the header for an orchestrator that refuses who shows nothing; {} where it is not due.

    Args:
        told: what its refusal says beside: who it is, and that it knows the mesh key.
        is_given: a person has said that it is the right one.
    """
    secret = secret_of_mesh(config)
    if config.token is not None and is_given:
        return {"Authorization": f"Bearer {config.token}"}
    if secret is None or not _is_of_mesh(secret, told):
        return {}
    return {"Authorization": f"Bearer {web_pass(secret)}"}


def _is_of_mesh(secret: bytes, told: Mapping[str, object]) -> bool:
    try:
        server_key = bytes.fromhex(str(told.get("server_key")))
        proof = bytes.fromhex(str(told.get("proof")))
    except ValueError:
        return False
    return is_same_proof(proof, announced_proof(secret, server_key))


def secret_of_mesh(config: Config) -> bytes | None:
    """Return the mesh secret; None without D8_MESH_KEY. Made once in a process: it takes long."""
    return None if config.mesh_key is None else _kept_secret(config.mesh_key, config.mesh)


@lru_cache(maxsize=8)
def _kept_secret(mesh_key: str, mesh: str) -> bytes:
    return mesh_secret(mesh_key, mesh)
