"""The keys that an orchestrator knows: who was let in, who waits for it, who was shown out.

Data and its rules; what becomes of sessions is `joins`'s. Nothing here expires by a clock: a key
that was let in stays so until somebody revokes it, and a worker id stays its key's until somebody
has it forgotten. Only where more keys come than are kept, those longest unseen go, and only where
that locks nobody out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from d8mesh.core.broker.members_view import (
    MAX_IDS_OF_KEY,
    MAX_MEMBER_NAME_CHARS,
    KeptMember,
    Knock,
    Membership,
    MembersView,
)
from d8mesh.core.broker.strikes import Strikes
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.tokens import worker_tag
from d8mesh.errors import ForbiddenError

#: Keys that are kept: far more than a LAN has machines, about 2 MB of a file.
MAX_MEMBERS: Final = 10_000
#: Keys that somebody has revoked are kept beyond that: who fills the table must not hinder it.
MAX_REVOKED_BEYOND: Final = 1000
#: So many go at once when that is reached: looking for them takes a walk through all.
MEMBERS_LET_GO: Final = 500
#: Keys that wait for approval; of more the one that knocked longest ago goes. It knocks again.
MAX_WAITING: Final = 256
#: Names that nodes announce for their keys, kept for those that may knock later.
MAX_ANNOUNCED_KEYS: Final = 1000


@dataclass(slots=True, eq=False)
class Member:
    """One key; times in Unix seconds, for people only."""

    key: bytes
    standing: Membership
    #: worker, client, or "" for one that has not said HELLO
    kind: str = ""
    #: of a worker its id, of a client its host; of one that waits what it announces
    name: str = ""
    address: str = ""
    #: that are this key's alone, the oldest first
    worker_ids: list[str] = field(default_factory=list)
    #: that a revoked key had until it was forgotten: its attempts under them stay refused
    freed_ids: tuple[str, ...] = ()
    since_at: float = 0.0
    seen_at: float = 0.0
    #: how people see the key
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(self.key)


class Members:
    """All keys.

    Args:
        needs_approval: an unknown key waits until it is approved.
        allows_public: public addresses may connect.
        own: keys whose files lie in the orchestrator's data folder: always let in.
        kept: what the file of an earlier start has.
    """

    def __init__(
        self,
        *,
        needs_approval: bool = False,
        allows_public: bool = False,
        own: Iterable[bytes] = (),
        kept: Iterable[KeptMember] = (),
    ) -> None:
        self.needs_approval = needs_approval
        self._allows_public = allows_public
        self.own = set(own)
        #: admitted and revoked keys, those longest unseen first
        self.by_key: dict[bytes, Member] = {}
        #: keys that wait, who knocked longest ago first
        self.waiting: dict[bytes, Member] = {}
        self._owners: dict[str, bytes] = {}
        self._revoked_tags: set[bytes] = set()
        self._announced: dict[bytes, str] = {}
        self.strikes = Strikes()
        #: there is something that the file lacks
        self.is_unkept = False
        for row in kept:
            self._restore(row)
        self.renew()

    # --------------------------------------------------------------------- what is so

    def kept(self) -> list[KeptMember]:
        """Return the rows of the file."""
        return [
            KeptMember(
                key=member.key.hex(),
                standing=member.standing,
                kind=member.kind,
                name=member.name,
                address=member.address,
                worker_ids=tuple(member.worker_ids),
                freed_ids=member.freed_ids,
                since_at=member.since_at,
                seen_at=member.seen_at,
            )
            for member in self.by_key.values()
        ]

    def all(self) -> list[Member]:
        """Return all that are known, those that wait first."""
        return [*self.waiting.values(), *self.by_key.values()]

    @property
    def is_full(self) -> bool:
        """True when no more keys are kept."""
        return len(self.by_key) >= MAX_MEMBERS

    def owner_of(self, worker_id: str) -> bytes | None:
        """Return the key that a worker id belongs to."""
        return self._owners.get(worker_id)

    def is_revoked_tag(self, tag: bytes) -> bool:
        """Return whether an attempt with this worker tag was given to a key revoked by now."""
        return tag in self._revoked_tags

    def renew(self) -> None:
        """Make the view of what is so now."""
        by_key = self.by_key.values()
        admitted = (m.key for m in by_key if m.standing is Membership.ADMITTED)
        self.view = MembersView(
            needs_approval=self.needs_approval,
            allows_public=self._allows_public,
            admitted=frozenset(self.own.union(admitted)) if self.needs_approval else frozenset(),
            revoked=frozenset(m.key for m in by_key if m.standing is Membership.REVOKED) - self.own,
            banned=frozenset(self.strikes.banned),
        )
        self._revoked_tags = {
            worker_tag(each)
            for member in map(self.by_key.__getitem__, self.view.revoked)
            for each in (*member.worker_ids, *member.freed_ids)
            if self._owners.get(each, member.key) == member.key  # else it is another's by now
        }

    # ------------------------------------------------------------------ what happens

    def knock(self, knock: Knock, at: float) -> None:
        """Note who knocks: a key of our own is let in, another may have to wait."""
        key = knock.key
        if key is None:
            return
        if knock.is_own and key not in self.own:
            self.own.add(key)
            self.waiting.pop(key, None)
            self.renew()
        if self.view.refusal_of_key(key) != "access.pending":
            return
        member = self.waiting.pop(key, None) or Member(key, Membership.WAITING, since_at=at)
        member.name = self._announced.get(key, member.name)
        member.address, member.seen_at = knock.address, at
        self.waiting[key] = member
        if len(self.waiting) > MAX_WAITING:
            del self.waiting[self._least_wanted()]

    def _least_wanted(self) -> bytes:
        """Return which waiting key goes: the oldest of the address that has the most of them.

        So whoever knocks with ever new keys takes the places of his own.
        """
        count = Counter(each.address for each in self.waiting.values())
        crowded = max(count.values())
        return next(key for key, each in self.waiting.items() if count[each.address] == crowded)

    def announce(self, key: bytes, name: str) -> None:
        """Note the name that a node announces for its key; anybody may announce anything."""
        self._announced.pop(key, None)
        self._announced[key] = name[:MAX_MEMBER_NAME_CHARS]
        if len(self._announced) > MAX_ANNOUNCED_KEYS:
            del self._announced[next(iter(self._announced))]
        if key in self.waiting:
            self.waiting[key].name = self._announced[key]

    def come(self, key: bytes, kind: str, name: str, address: str, at: float) -> None:
        """A key that may come has said HELLO; a worker's `name`, its id, is its own from now on."""
        member = self.by_key.pop(key, None)
        if member is None:
            if self.is_full:
                return  # it is let in for a reason of its own, and goes unnoted
            member = Member(key, Membership.ADMITTED, since_at=at)
            self.is_unkept = True
        self.by_key[key] = member  # seen last
        told = (kind, name[:MAX_MEMBER_NAME_CHARS], address)
        if told != (member.kind, member.name, member.address):
            member.kind, member.name, member.address = told
            self.is_unkept = True
        member.seen_at = at
        if kind == "worker" and self._owners.get(name) != key:
            self._bind(member, name)

    def make_room(self, connected: Callable[[], Collection[bytes | None]]) -> None:
        """Let some keys go if there is no room for one more.

        Where approval is needed nobody goes: that would lock somebody out. Else those go that
        come back by themselves: clients before workers, as these have ids; and of workers those at
        the address that has the most, for who makes up keys shall not have others' ids freed.

        Args:
            connected: returns the keys that have a session, which stay.
        """
        if self.needs_approval or not self.is_full:
            return
        stay = {*connected(), *self.own}
        admitted = [
            m
            for m in self.by_key.values()
            if m.standing is Membership.ADMITTED and m.key not in stay
        ]
        at = Counter(member.address for member in admitted if member.worker_ids)
        admitted.sort(key=lambda m: (bool(m.worker_ids), -at[m.address] if m.worker_ids else 0))
        for member in admitted[:MEMBERS_LET_GO]:
            self._let_go(member)

    def approve(self, member: Member, at: float) -> None:
        """Let a key in.

        Raises:
            ForbiddenError: more keys than are kept would be let in.
        """
        if member.key not in self.by_key:
            if self.is_full:
                raise ForbiddenError(
                    f"{MAX_MEMBERS} keys are admitted or revoked: no more are kept. Have some "
                    "forgotten that are not used any more"
                )
            member.since_at = at
        self.strikes.pardon(member.key)
        member.freed_ids = ()
        self._stand(member, Membership.ADMITTED)

    def refuse_own(self, key: bytes) -> None:
        """Raise ForbiddenError if it is a key of our own."""
        if key in self.own:
            raise ForbiddenError(
                f"{fingerprint(key)} is a key of this orchestrator's own data folder, which is "
                "always let in: delete the key file there, and start the orchestrator anew"
            )

    def revoke(self, member: Member) -> None:
        """Show a key out; raises as `approve`."""
        self.refuse_own(member.key)
        most = MAX_MEMBERS + MAX_REVOKED_BEYOND
        if member.key not in self.by_key and len(self.by_key) >= most:
            raise ForbiddenError(f"{most} keys are admitted or revoked: no more are kept")
        self._stand(member, Membership.REVOKED)

    def forget(self, member: Member) -> None:
        """Free its worker ids, and have the key unknown; a revoked one stays revoked."""
        self.waiting.pop(member.key, None)
        self._let_go(member)
        self.renew()

    # ----------------------------------------------------------------------- inside

    def _stand(self, member: Member, standing: Membership) -> None:
        self.waiting.pop(member.key, None)
        member.standing = standing
        self.by_key[member.key] = member
        self.is_unkept = True
        self.renew()

    def _bind(self, member: Member, worker_id: str) -> None:
        self._owners[worker_id] = member.key
        self._revoked_tags.discard(worker_tag(worker_id))
        member.worker_ids.append(worker_id)
        if len(member.worker_ids) > MAX_IDS_OF_KEY:
            del self._owners[member.worker_ids.pop(0)]
        self.is_unkept = True

    def _restore(self, row: KeptMember) -> None:
        key = bytes.fromhex(row.key)
        member = Member(key, row.standing, row.kind, row.name, row.address)
        member.since_at, member.seen_at = row.since_at, row.seen_at
        member.freed_ids = row.freed_ids
        self.by_key[key] = member
        for worker_id in row.worker_ids:
            if worker_id not in self._owners:
                self._owners[worker_id] = key
                member.worker_ids.append(worker_id)

    def _let_go(self, member: Member) -> None:
        for worker_id in member.worker_ids:
            self._owners.pop(worker_id, None)
        if member.standing is Membership.REVOKED:
            member.freed_ids = (*member.freed_ids, *member.worker_ids)[-MAX_IDS_OF_KEY:]
        else:
            self.by_key.pop(member.key, None)
        member.worker_ids.clear()
        self.is_unkept = True
