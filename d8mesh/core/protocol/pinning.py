"""Which orchestrators a worker or client may speak to. Pure.

An address is a hint, a key is the identity. Whoever says that it is an orchestrator of our mesh
is contacted only if its key is known (pinned), lies in our own data folder, or is proven by the
mesh key; where nothing at all is known of a mesh, the first that answers is taken (and pinned).

Source: ``docs/SECURITY.md``, "How a worker knows its orchestrator"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from d8mesh.core.protocol.membership import announced_proof, fingerprint, is_same_proof
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import ConfigError

#: Keys that are remembered of one mesh: more orchestrators than that have other reasons.
MAX_PINS: Final = 64
#: How long the first orchestrator that was heard has to answer before another is tried.
FIRST_CONTACT_S: Final = 10.0
#: How many wait for their turn; more are not of one mesh.
MAX_WAITING_KEYS: Final = 16
_TYPED_FINGERPRINT: Final = re.compile(r"[a-z2-7]{4}(-?[a-z2-7]{4}){3}", re.ASCII)
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_GROUP: Final = 4


@dataclass(frozen=True, slots=True)
class Pin:
    """One key that is trusted in a mesh.

    `key` is None while only its fingerprint is known: a person named it, and it was not met yet.
    `since` is Unix seconds, for people.
    """

    fingerprint: str
    key: bytes | None = None
    broker_id: str = ""
    since: float = 0.0

    def is_of(self, key: bytes) -> bool:
        """Return whether this pins `key`."""
        return self.key == key if self.key is not None else self.fingerprint == fingerprint(key)


class Trust(Enum):
    """How an orchestrator stands to what is known of its mesh."""

    OWN = "own"  #: it is of this data folder
    PINNED = "pinned"
    PROVEN = "proven"  #: it knows the mesh key
    FIRST = "first"  #: nothing is known of its mesh
    STRANGE = "strange"  #: others are pinned
    UNPROVEN = "unproven"  #: it does not show that it knows the mesh key
    KEYLESS = "keyless"  #: it tells no key

    @property
    def is_open(self) -> bool:
        """True when it may be contacted."""
        return self in _CONTACTED


_CONTACTED: Final = frozenset({Trust.OWN, Trust.PINNED, Trust.PROVEN, Trust.FIRST})


def trust_in(
    broker: KnownBroker, pins: Sequence[Pin], *, secret: bytes | None, is_own: bool = False
) -> Trust:
    """Return how what somebody says of himself stands to what is known.

    Args:
        pins: of its mesh.
        secret: of the mesh key (`membership.mesh_secret`); None: there is none.
        is_own: it wrote this down in our own data folder.
    """
    key = broker.server_key
    if key is None:
        return Trust.KEYLESS
    if is_own:
        return Trust.OWN
    if secret is not None:
        is_proven = is_same_proof(broker.proof, announced_proof(secret, key))
        return Trust.PROVEN if is_proven else Trust.UNPROVEN
    if any(pin.is_of(key) for pin in pins):
        return Trust.PINNED
    return Trust.STRANGE if pins else Trust.FIRST


class FirstContact:
    """Of several keys of which nothing is known one is tried at a time: the first to answer wins.

    Thread: one at a time.
    """

    def __init__(self) -> None:
        self._key, self._until = b"", 0.0
        #: who asked while it was another's turn, in order
        self._waiting: dict[bytes, None] = {}

    def expect(self, now: float) -> None:
        """A person has named one, whose key will be known soon: all others wait."""
        self._key, self._until = b"", now + FIRST_CONTACT_S

    def prefer(self, key: bytes, now: float) -> None:
        """This is the one that a person has named: it is its turn."""
        self._key, self._until = key, now + FIRST_CONTACT_S

    def may(self, key: bytes, now: float) -> bool:
        """Return whether it is this one's turn; a turn lasts `FIRST_CONTACT_S`."""
        if now >= self._until:
            self._key, self._until = next(iter(self._waiting), key), now + FIRST_CONTACT_S
            self._waiting.pop(self._key, None)
        if key != self._key and len(self._waiting) < MAX_WAITING_KEYS:
            self._waiting[key] = None
        return key == self._key

    def failed(self, key: bytes) -> None:
        """Nobody answers there: it is the next one's turn."""
        if key == self._key:
            self._until = 0.0

    def answered(self, key: bytes, now: float) -> None:
        """It has shown that the key is its own, but lets us wait: it stays its turn."""
        if key == self._key:
            self._until = now + FIRST_CONTACT_S


def with_pin(pins: Sequence[Pin], new: Pin) -> tuple[Pin, ...]:
    """Return the pins with a new one; the oldest goes when there are too many."""
    rest = [pin for pin in pins if pin.fingerprint != new.fingerprint]
    return tuple([*rest, new][-MAX_PINS:])


def without_pin(pins: Sequence[Pin], of: str) -> tuple[Pin, ...]:
    """Return the pins without the one whose fingerprint is `of`."""
    return tuple(pin for pin in pins if pin.fingerprint != of)


def parse_fingerprint(text: str) -> tuple[str, bytes | None]:
    """Return the fingerprint that a person typed, and the key if that was typed instead.

    Raises:
        ConfigError: it is neither a fingerprint nor a key.
    """
    plain = text.strip().lower()
    if _KEY.fullmatch(plain):
        key = bytes.fromhex(plain)
        return fingerprint(key), key
    if _TYPED_FINGERPRINT.fullmatch(plain):
        bare = plain.replace("-", "")
        return "-".join(bare[at : at + _GROUP] for at in range(0, len(bare), _GROUP)), None
    raise ConfigError(
        f"{text[:80]!r} is no fingerprint: expected the form k3fq-2mzd-7xwa-pq4e, as the "
        "orchestrator prints it at its start"
    )
