"""What a node says of itself over mDNS, and reading what others say. Pure.

The identity stands in the TXT record, because names are renamed and addresses change:
``id``, ``boot``, ``mesh``, ``version``, ``key`` (its public key) and, if there are any, ``web``
(the REST port), ``proof`` (of the mesh key) and ``tls`` (the fingerprint of its certificate).
Unknown keys are ignored, so that later versions may add some.

Source: RFC 6763 section 6; ``docs/PROTOCOL.md``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import ProtocolError
from d8mesh.setting_forms import NAME_PATTERN

#: Bytes of a TXT record that is read: ours takes under 400; RFC 6763 recommends below 1300.
MAX_TXT_BYTES: Final = 1300
_KEY_DIGITS: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PEER_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)


class NodeKind(Enum):
    """What kind of node; the values are the DNS-SD service types."""

    ORCHESTRATOR = "_d8mesh._tcp.local."
    WORKER = "_d8worker._tcp.local."


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a node says of itself."""

    kind: NodeKind
    node_id: str
    boot_id: str
    mesh: str
    port: int
    web_port: int | None
    version: str
    #: the public key of the node, 32 bytes; None: it tells of none
    server_key: bytes | None = None
    #: that who has it knows the mesh key (`membership.announced_proof`); b"": it has none
    proof: bytes = b""
    #: the SHA-256 fingerprint of its web port's certificate (64 hex digits); "": plain HTTP
    tls: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting(Announcement):
    """A node that was heard; `addresses` in the order to try them, none of them tried."""

    addresses: tuple[str, ...]

    @property
    def broker(self) -> KnownBroker:
        """Where it is, as an orchestrator."""
        where = (self.node_id, self.addresses, self.port, self.web_port)
        return KnownBroker(*where, self.server_key, self.proof, self.tls)


def to_txt(announcement: Announcement) -> dict[str, str]:
    """Return the pairs of the TXT record."""
    pairs = {
        "id": announcement.node_id,
        "boot": announcement.boot_id,
        "mesh": announcement.mesh,
        "version": announcement.version,
    }
    if announcement.web_port is not None:
        pairs["web"] = str(announcement.web_port)
    told = {
        "key": (announcement.server_key or b"").hex(),
        "proof": announcement.proof.hex(),
        "tls": announcement.tls,
    }
    return pairs | {key: value for key, value in told.items() if value}


def from_txt(kind: NodeKind, txt: bytes, *, port: int, addresses: tuple[str, ...] = ()) -> Sighting:
    """Return what a service says of itself.

    Args:
        txt: the TXT record: strings of up to 255 bytes, each after its length.

    Raises:
        ProtocolError: the record is too large, cut off, not UTF-8, names a key twice, lacks
            one, or has a value that is not allowed; or the port is not 1 to 65535.
    """
    pairs = _pairs(txt)
    for key in ("id", "boot", "mesh", "version"):
        if not _PEER_NAME.fullmatch(pairs.get(key, "")):
            raise ProtocolError(f"TXT {key}={pairs.get(key)!a:.80}: expected {NAME_PATTERN}")
    if not 0 < port < 65536:
        raise ProtocolError(f"port {port}: expected 1 to 65535")
    return Sighting(
        kind=kind,
        node_id=pairs["id"],
        boot_id=pairs["boot"],
        mesh=pairs["mesh"],
        addresses=addresses,
        port=port,
        web_port=_web_port(pairs.get("web")),
        version=pairs["version"],
        server_key=_digits("key", pairs) or None,
        proof=_digits("proof", pairs),
        tls=_digits("tls", pairs).hex(),
    )


def _pairs(txt: bytes) -> dict[str, str]:
    if len(txt) > MAX_TXT_BYTES:
        raise ProtocolError(f"TXT of {len(txt)} bytes: expected at most {MAX_TXT_BYTES}")
    pairs: dict[str, str] = {}
    at = 0
    while at < len(txt):
        end = at + 1 + txt[at]
        if end > len(txt):
            raise ProtocolError("TXT record cut off")
        try:
            key, _, value = txt[at + 1 : end].decode("utf-8").partition("=")
        except UnicodeDecodeError as error:
            raise ProtocolError(f"TXT is not UTF-8: {error.reason}") from error
        if key.lower() in pairs:
            raise ProtocolError(f"TXT names {key!a:.80} twice")
        if key:
            pairs[key.lower()] = value
        at = end
    return pairs


def _digits(key: str, pairs: dict[str, str]) -> bytes:
    """Return the 32 bytes that 64 hex digits stand for; b"" if the record has no such key."""
    text = pairs.get(key, "")
    if text and not _KEY_DIGITS.fullmatch(text):
        raise ProtocolError(f"TXT {key}={text!a:.80}: expected 64 hex digits")
    return bytes.fromhex(text)


def _web_port(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ProtocolError(f"TXT web={text!a:.80}: expected a port, 1 to 65535")
    return int(text)
