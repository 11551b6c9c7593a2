"""The members as they are listed, and who of them a name or fingerprint means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from d8mesh.core.broker.members import Member, Members
from d8mesh.core.broker.members_view import Membership
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.membership import FINGERPRINT_CHARS, JoinMode, fingerprint
from d8mesh.errors import AmbiguousMemberError, UnknownMemberError

#: The standings in which a key can be let in, shown out, or forgotten.
FIT: Final = {
    "approve": (Membership.WAITING, Membership.REVOKED),
    "revoke": (Membership.ADMITTED, Membership.WAITING),
    "forget": (Membership.ADMITTED, Membership.WAITING, Membership.REVOKED),
}
#: Of several that a name means, so many are named.
MAX_TWINS_NAMED: Final = 5
#: What stands after the host in an id that a worker has made up, or taken instead of another.
_MADE_UP: Final = re.compile(r"(-[0-9a-f]{8})+\Z", re.ASCII)
_BARE_FINGERPRINT: Final = re.compile(rf"[a-z2-7]{{{FINGERPRINT_CHARS}}}", re.ASCII)

Body = dict[str, object]


def listing(state: BrokerState) -> Body:
    """Return the body of the ``members`` question: those that wait first, the newest last."""
    members, there = state.members, connected(state)
    return {
        "mode": modes_of(state),
        "orchestrator": fingerprint(state.policy.server_key),
        "waiting": len(members.waiting),
        "members": [_shown(state, member, there) for member in members.all()],
    }


def modes_of(state: BrokerState) -> list[str]:
    """Return what a key needs to come in."""
    modes = [JoinMode.APPROVE] if state.members.needs_approval else []
    if state.policy.mesh_secret is not None:
        modes.append(JoinMode.KEY)
    return [mode.value for mode in modes or [JoinMode.LAN]]


def shown(state: BrokerState, member: Member) -> Body:
    """Return how one member is listed."""
    return _shown(state, member, connected(state))


def connected(state: BrokerState) -> set[bytes | None]:
    """Return the keys that have a session."""
    workers = {worker.peer.key for worker in state.registry.workers.values() if worker.is_live}
    return workers | {client.peer.key for client in state.clients.values()}


def _shown(state: BrokerState, member: Member, there: set[bytes | None]) -> Body:
    members, key = state.members, member.key
    banned_until = members.strikes.banned.get(key)
    return {
        "fingerprint": member.fingerprint,
        "key": key.hex(),
        "standing": standing_of(members, member),
        "kind": member.kind,
        "name": member.name,
        "address": member.address,
        "worker_ids": list(member.worker_ids),
        "since": member.since_at or None,
        "last_seen": member.seen_at or None,
        "is_own": key in members.own,
        "is_connected": key in there,
        "banned_s": None if banned_until is None else max(0.0, banned_until - state.now),
    }


def standing_of(members: Members, member: Member) -> str:
    """Return how a member stands; a key that nobody knows any more is ``unknown``."""
    is_known = member.key in members.by_key or member.key in members.waiting
    return member.standing.value if is_known else "unknown"


def found(members: Members, action: str, who: str) -> Member:
    """Return the one member that `who` means: a fingerprint, else a worker id or host.

    The id that a worker makes up for itself begins with its host: that is a name of it, too.

    The name of a key that waits is whatever anybody announces: it names nobody.

    Raises:
        UnknownMemberError: there is none.
        ForbiddenError: it is a key of the orchestrator's own data folder, which has no standing.
        AmbiguousMemberError: there are several, or it is the name of a key that waits.
    """
    called = [member for member in members.all() if _is_called(member, who)]
    announced = [] if _bare(who) else [each for each in called if each.key in members.waiting]
    if announced and (action == "approve" or len(announced) == len(called)):
        raise AmbiguousMemberError(
            f"{who[:80]!r} is only what a key that waits calls itself, and anybody may announce "
            "anything: compare with what that machine's own screen shows, and give the "
            f"fingerprint instead ({_named(announced)})"
        )
    called = [each for each in called if each not in announced]
    if not called:
        for key in members.own:
            if fingerprint(key).replace("-", "") == _bare(who):
                members.refuse_own(key)
        raise UnknownMemberError(f"no key of the fingerprint or name {who[:80]!r} is known here")
    fit = FIT[action]
    # of who stands so already it is done once more, which changes nothing
    fitting = [member for member in called if member.standing in fit] or called
    if len(fitting) > 1:
        raise AmbiguousMemberError(
            f"{who[:80]!r} is the name of {len(fitting)} keys: give a fingerprint instead "
            f"({_named(fitting)})"
        )
    return fitting[0]


def _is_called(member: Member, who: str) -> bool:
    if bare := _bare(who):  # nobody may call itself what another key is shown as
        return member.fingerprint.replace("-", "") == bare
    names = {member.name, *member.worker_ids}
    return who in names or who in {_MADE_UP.sub("", name) for name in names}


def _bare(who: str) -> str:
    """Return a fingerprint without its dashes; "": it is none."""
    bare = who.lower().replace("-", "")
    return bare if _BARE_FINGERPRINT.fullmatch(bare) else ""


def _named(members: Sequence[Member]) -> str:
    named = [f"{member.fingerprint} at {member.address}" for member in members[:MAX_TWINS_NAMED]]
    return ", ".join(named) + (", …" if len(members) > MAX_TWINS_NAMED else "")
