"""What shows that a peer belongs to a mesh: keys as people see them, and the proof of a mesh key.

The public key of a connection is proven by the transport (CURVE); the proofs here bind a
`D8_MESH_KEY` to the two keys of that connection, so that a proof is of no use to anybody else.

Source: RFC 2104 (HMAC), RFC 7914 (scrypt); ``docs/SECURITY.md``
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

#: Bytes of a proof (HMAC-SHA-256).
PROOF_BYTES: Final = 32
#: Characters of a fingerprint without its hyphens: 80 bits, out of reach of a search for a twin.
FINGERPRINT_CHARS: Final = 16
_GROUP_CHARS: Final = 4
#: How the pass of a link begins.
LINK_PASS_PREFIX: Final = "d8l_"


class JoinMode(Enum):
    """Who may join; the values are those of `D8_JOIN`."""

    LAN = "lan"  #: whoever is on an attached private network
    APPROVE = "approve"  #: whose key has been approved
    KEY = "key"  #: who knows the mesh key


class Verdict(Enum):
    """What a connection is told before a frame of it is read; the values are ZAP's statuses."""

    ADMITTED = "200"  #: it may speak
    WAITING = "400"  #: its key has not been approved yet, or not for now
    REFUSED = "500"  #: it may not


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a worker or client shows an orchestrator, and asks of it in return.

    `secret` is the mesh secret; None: no mesh key is set, so nothing is shown or asked.
    """

    public: bytes = b""
    secret: bytes | None = field(default=None, repr=False)

    def shown_to(self, server_key: bytes | None) -> bytes:
        """Return the proof for the HELLO to the orchestrator that has this key."""
        if self.secret is None or server_key is None:
            return b""
        return join_proof(self.secret, server_key, self.public)

    def accept(self, server_key: bytes | None, proof: bytes) -> bool:
        """Return whether a WELCOME with this proof is one of our mesh."""
        if self.secret is None:
            return True
        return server_key is not None and is_same_proof(
            proof, welcome_proof(self.secret, server_key, self.public)
        )


#: Of who has no mesh key.
NOTHING_TO_SHOW: Final = Credentials()
#: What is said of an orchestrator whose WELCOME is not accepted.
UNPROVEN: Final = "does not know this machine's D8_MESH_KEY: nothing is said to it"


def fingerprint(public_key: bytes) -> str:
    """Return how people see a key: ``k3fq-2mzd-7xwa-pq4e``."""
    digest = base64.b32encode(hashlib.sha256(public_key).digest()).decode("ascii").lower()
    short = digest[:FINGERPRINT_CHARS]
    return "-".join(short[at : at + _GROUP_CHARS] for at in range(0, len(short), _GROUP_CHARS))


def mesh_secret(mesh_key: str, mesh: str) -> bytes:
    """Return what proofs are made with, 32 bytes; takes tens of milliseconds, so keep it.

    Slow on purpose: whoever hears a proof can try mesh keys on it.
    """
    return hashlib.scrypt(
        mesh_key.encode(), salt=b"d8mesh " + mesh.encode(), n=2**14, r=8, p=1, dklen=32
    )


def announced_proof(secret: bytes, server_key: bytes) -> bytes:
    """Return what an orchestrator tells everybody: that who has `server_key` knows the mesh key.

    Whoever repeats it gains nothing: only the orchestrator has the secret half of that key.
    """
    return _proof(b"announced", secret, server_key)


def join_proof(secret: bytes, server_key: bytes, peer_key: bytes) -> bytes:
    """Return what a worker or client shows in its HELLO: that it knows the mesh key."""
    return _proof(b"join", secret, server_key + peer_key)


def welcome_proof(secret: bytes, server_key: bytes, peer_key: bytes) -> bytes:
    """Return what an orchestrator shows in its WELCOME: that it knows the mesh key."""
    return _proof(b"welcome", secret, server_key + peer_key)


def link_pass(secret: bytes, link_id: str) -> str:
    """Return what opens a link through the REST port.

    Whoever hears it can do nothing else with it, and a link alone is worth nothing: who comes
    through it proves itself to the broker like everybody.
    """
    return f"{LINK_PASS_PREFIX}{_proof(b'link', secret, link_id.encode()).hex()}"


def is_same_proof(one: bytes, other: bytes) -> bool:
    """Compare two proofs; the time that takes tells nothing of them."""
    return hmac.compare_digest(one, other)


def _proof(what: bytes, secret: bytes, keys: bytes) -> bytes:
    # Keys have a fixed length, so what is proven can be read in one way only.
    return hmac.digest(secret, b"d8mesh " + what + b"\0" + keys, "sha256")
