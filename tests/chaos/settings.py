"""The settings of the clients of a chaos run."""

from __future__ import annotations

import os
from pathlib import Path

from d8mesh.config import Config
from d8mesh.core.protocol.membership import join_proof, mesh_secret


def config_of(mesh: str, url: str, home: Path) -> Config:
    """Return them; `home` is the client's data folder, with its key."""
    interfaces = ("127.0.0.1",) if url else ()
    mesh_key = os.environ.get("D8_MESH_KEY") or None
    return Config(mesh=mesh, interfaces=interfaces, data_dir=str(home), mesh_key=mesh_key)


def proof_of(mesh: str, server_key: bytes, public_key: bytes) -> bytes:
    """Return what a HELLO shows of the mesh key, if there is one."""
    key = os.environ.get("D8_MESH_KEY")
    return join_proof(mesh_secret(key, mesh), server_key, public_key) if key else b""
