"""Why a HELLO is refused, if it is: version, mesh, key, proof, and whose the id is."""

from __future__ import annotations

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.state import BrokerState, ClientState
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.membership import fingerprint, is_same_proof, join_proof
from d8mesh.core.protocol.messages import (
    VERSIONS,
    ClientHello,
    Refused,
    WorkerHello,
    spoken_instead_of,
)
from d8mesh.errors import BannedError, D8Error, MeshKeyError, NotAdmittedError, RevokedError


def refuse_other_id(
    message: WorkerHello | ClientHello, worker: WorkerState | None, client: ClientState | None
) -> Refused | None:
    """A connection stays what it said first that it is, as long as that session stands.

    Args:
        worker, client: whose session stands under this connection.
    """
    why = ""
    if isinstance(message, WorkerHello):
        if client is not None:
            why = "a client cannot become a worker"
        elif worker is not None and worker.worker_id != message.worker_id:
            why = f"this connection is worker {worker.worker_id!r}, and cannot become another"
    elif worker is not None:
        why = "a worker cannot become a client"
    elif client is not None and client.session != message.session:
        why = "this connection has a session, and cannot have another"
    return Refused(0, "access.forbidden", why) if why else None


def refuse_hello(
    message: WorkerHello | ClientHello, peer: Peer, state: BrokerState
) -> Refused | None:
    """Return why a HELLO is refused, or None."""
    if message.version not in VERSIONS:
        return Refused(0, "protocol.version", spoken_instead_of(message.version, VERSIONS))
    mesh = state.policy.mesh
    if message.mesh != mesh:
        return Refused(0, "access.forbidden", f"this is mesh {mesh!r}, not {message.mesh!r}")
    error = _refuse_key(message.proof, peer, state)
    if error is not None:
        return Refused(0, error.code, str(error))
    if isinstance(message, WorkerHello):
        return _refuse_id(message.worker_id, peer, state)
    return _refuse_session(message.session, peer, state)


def _refuse_key(proof: bytes, peer: Peer, state: BrokerState) -> D8Error | None:
    secret, key = state.policy.mesh_secret, peer.key
    shown = fingerprint(key) if key else "without encryption"
    approve = f"`join approve {shown}` at the orchestrator"
    match state.members.view.refusal_of_key(key):
        case "access.revoked":
            return RevokedError(f"key {shown} was revoked: {approve} lets it in again")
        case "access.banned":
            return BannedError()
        case "access.pending":
            return NotAdmittedError(f"key {shown} waits for approval: run {approve}")
    if secret is None:
        return None
    server_key = state.policy.server_key
    if key is not None and is_same_proof(proof, join_proof(secret, server_key, key)):
        return None
    used = "another was used here" if proof else "none was used here"
    return MeshKeyError(f"this mesh has a D8_MESH_KEY, and {used}: set the one of the orchestrator")


def _refuse_id(worker_id: str, peer: Peer, state: BrokerState) -> Refused | None:
    """A worker id belongs to the key that had it first, and to the one that lives with it."""
    owner, old = state.members.owner_of(worker_id), state.registry.workers.get(worker_id)
    if owner == peer.key and owner is not None:
        return None
    if owner is not None:
        text = f"{worker_id!r} belongs to another key: `join forget {worker_id}` at the "
        return Refused(0, "worker.id_taken", f"{text}orchestrator frees it")
    is_lived = old is not None and old.is_live and old.dialect is Dialect.MESH
    if old is None or not is_lived or old.peer.key == peer.key:
        return None
    return Refused(0, "worker.id_taken", f"{worker_id!r} is at work with another key")


def _refuse_session(session: str, peer: Peer, state: BrokerState) -> Refused | None:
    """A session is its client's key's alone, also while that is away: task ids name it to all.

    After a restart whoever comes first has it; the REST door, a key of our own, gets its own back.
    """
    client, own = state.clients.get(session), state.members.own
    key = state.session_keys.get(session) if client is None else client.peer.key
    if key == peer.key or (client is None and key is None):
        return None
    if peer.key in own and key not in own:
        return None
    return Refused(0, "access.forbidden", "this session belongs to another key")
