"""What others see of the members: the gate's view, the rows of their file, and a knock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from d8mesh.core.protocol.addresses import is_admissible
from d8mesh.core.protocol.membership import Verdict

#: Characters of a name, as in HELLO; a longer one is cut.
MAX_MEMBER_NAME_CHARS: Final = 128
#: Worker ids that one key may have had; the oldest is anybody's again.
MAX_IDS_OF_KEY: Final = 16


class Membership(Enum):
    """How a key stands."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    REVOKED = "revoked"


class Knock(NamedTuple):
    """A connection that the gate has refused, or let in for a reason that the view lacks.

    `code` is why it was refused (`MembersView.refusal`), "" if it was not. `is_own`: the file of
    this key lies in the orchestrator's data folder.
    """

    key: bytes | None
    address: str
    code: str
    is_own: bool = False


_NameText = Annotated[str, Meta(max_length=MAX_MEMBER_NAME_CHARS)]


class KeptMember(Struct, frozen=True, kw_only=True):
    """A row of the file of members; times in Unix seconds, for people only."""

    key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    standing: Membership
    kind: _NameText = ""
    name: _NameText = ""
    address: _NameText = ""
    worker_ids: Annotated[tuple[_NameText, ...], Meta(max_length=MAX_IDS_OF_KEY)] = ()
    #: of a revoked key that was forgotten: the ids that it had
    freed_ids: Annotated[tuple[_NameText, ...], Meta(max_length=MAX_IDS_OF_KEY)] = ()
    since_at: float = 0.0
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class MembersView:
    """Who may connect, as it was at a moment: nothing of it changes, so any thread may ask.

    needs_approval: an unknown key waits until it is approved.
    allows_public: public addresses may connect; they have to show the mesh key.
    admitted: keys that were let in; of interest while approval is needed.
    revoked: keys that were shown out.
    banned: keys that sent too much that is not allowed, for now.
    """

    needs_approval: bool = False
    allows_public: bool = False
    admitted: frozenset[bytes] = frozenset()
    revoked: frozenset[bytes] = frozenset()
    banned: frozenset[bytes] = frozenset()

    def verdict(self, address: str, key: bytes | None) -> Verdict:
        """Return what a connection from `address` is told.

        Args:
            key: the public key that the peer has proven to have, 32 bytes.
        """
        return VERDICTS[self.refusal(address, key)]

    def refusal(self, address: str, key: bytes | None) -> str:
        """Return the code of why it is not let in, "" if it is."""
        if not (self.allows_public or is_admissible(address)):
            return "access.address"
        return self.refusal_of_key(key)

    def refusal_of_key(self, key: bytes | None) -> str:
        """The same, whatever its address."""
        if key is None:
            return "access.pending" if self.needs_approval else ""
        if key in self.revoked:
            return "access.revoked"
        if key in self.banned:
            return "access.banned"
        return "access.pending" if self.needs_approval and key not in self.admitted else ""


#: What is told of each code.
VERDICTS: Final = {
    "": Verdict.ADMITTED,
    "access.address": Verdict.REFUSED,
    "access.revoked": Verdict.REFUSED,
    "access.banned": Verdict.WAITING,
    "access.pending": Verdict.WAITING,
}
