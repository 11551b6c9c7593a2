"""Keys that are known: noted, bound to worker ids, approved, revoked, forgotten, and bounded.

The machine thinks of any history of keys, modes, ids, revocations, clocks and restarts.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from d8mesh.core.broker.members import (
    MAX_ANNOUNCED_KEYS,
    MAX_MEMBERS,
    MAX_REVOKED_BEYOND,
    MAX_WAITING,
    MEMBERS_LET_GO,
    Member,
    Members,
)
from d8mesh.core.broker.members_view import MAX_IDS_OF_KEY, KeptMember, Knock, Membership
from d8mesh.core.protocol.membership import Verdict, fingerprint
from d8mesh.core.protocol.tokens import worker_tag
from d8mesh.errors import ForbiddenError

LAN_ADDRESS = "192.168.1.7"


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


def knock(members: Members, who: bytes, *, is_own: bool = False, at: float = 0.0) -> str:
    """Return what the gate has said to a connection; what it has to say is told."""
    code = "" if is_own else members.view.refusal(LAN_ADDRESS, who)
    if code or is_own:
        members.knock(Knock(who, LAN_ADDRESS, code, is_own), at)
    return code


def come(members: Members, who: bytes, worker_id: str = "", at: float = 0.0) -> None:
    members.make_room(set)
    members.come(who, "worker" if worker_id else "client", worker_id or "pc", LAN_ADDRESS, at)


def again(members: Members, *, needs_approval: bool | None = None) -> Members:
    """Return what an orchestrator started again knows."""
    mode = members.needs_approval if needs_approval is None else needs_approval
    return Members(kept=members.kept(), needs_approval=mode, own=members.own)


def test_on_a_lan_a_key_is_noted_and_its_worker_id_is_its_own() -> None:
    members = Members()
    come(members, key(1), "w", at=5.0)
    member = members.by_key[key(1)]
    assert (member.standing, member.name, member.since_at) == (Membership.ADMITTED, "w", 5.0)
    assert member.fingerprint == fingerprint(key(1))
    assert members.owner_of("w") == key(1)
    assert members.is_unkept
    assert again(members).owner_of("w") == key(1)


def test_who_comes_again_as_before_gives_nothing_to_write() -> None:
    members = Members()
    come(members, key(1), "w", at=5.0)
    members.is_unkept = False
    come(members, key(1), "w", at=9.0)
    assert not members.is_unkept
    assert members.by_key[key(1)].seen_at == 9.0


def test_an_unknown_key_waits_until_it_is_approved() -> None:
    members = Members(needs_approval=True)
    assert knock(members, key(1), at=3.0) == "access.pending"
    waiting = members.waiting[key(1)]
    assert (waiting.address, waiting.since_at) == (LAN_ADDRESS, 3.0)
    members.approve(waiting, 4.0)
    assert knock(members, key(1)) == ""
    assert not members.waiting
    assert again(members).view.verdict(LAN_ADDRESS, key(1)) is Verdict.ADMITTED


def test_a_key_of_our_own_is_let_in_by_itself_and_stays_so() -> None:
    members = Members(needs_approval=True, own={key(1)})
    assert knock(members, key(1)) == ""
    assert knock(members, key(2)) == "access.pending"
    assert knock(members, key(2), is_own=True) == ""
    assert not members.waiting
    assert members.view.verdict(LAN_ADDRESS, key(2)) is Verdict.ADMITTED
    come(members, key(2), "w")
    with pytest.raises(ForbiddenError, match="own data folder"):
        members.revoke(members.by_key[key(2)])


def test_who_waits_has_the_name_that_it_announces_whenever_it_does() -> None:
    members = Members(needs_approval=True)
    members.announce(key(1), "pi-1")
    knock(members, key(1))
    knock(members, key(2))
    members.announce(key(2), "pi-2")
    assert [each.name for each in members.waiting.values()] == ["pi-1", "pi-2"]
    for n in range(MAX_ANNOUNCED_KEYS + 5):
        members.announce(key(n), f"n{n}")
    assert len(members._announced) == MAX_ANNOUNCED_KEYS


def test_the_list_of_those_that_wait_is_bounded_and_who_knocks_again_stays() -> None:
    members = Members(needs_approval=True)
    for n in range(MAX_WAITING):
        knock(members, key(n))
    knock(members, key(0))
    knock(members, key(MAX_WAITING))
    assert len(members.waiting) == MAX_WAITING
    assert key(0) in members.waiting
    assert key(1) not in members.waiting


def test_who_knocks_with_ever_new_keys_takes_the_places_of_his_own() -> None:
    members = Members(needs_approval=True)
    knock(members, key(0))
    for n in range(1, 2 * MAX_WAITING):
        members.knock(Knock(key(n), "10.0.0.66", "access.pending"), 0.0)
    assert len(members.waiting) == MAX_WAITING
    assert key(0) in members.waiting
    assert key(2 * MAX_WAITING - 1) in members.waiting


def test_a_revoked_key_stays_out_over_restarts_and_in_every_mode() -> None:
    members = Members()
    come(members, key(1), "w")
    members.revoke(members.by_key[key(1)])
    assert members.is_revoked_tag(worker_tag("w"))
    for needs_approval in (False, True):
        later = again(members, needs_approval=needs_approval)
        assert later.view.verdict(LAN_ADDRESS, key(1)) is Verdict.REFUSED
        assert later.is_revoked_tag(worker_tag("w"))
    members.approve(members.by_key[key(1)], 1.0)
    assert members.view.verdict(LAN_ADDRESS, key(1)) is Verdict.ADMITTED
    assert not members.is_revoked_tag(worker_tag("w"))


def test_to_forget_frees_the_ids_and_lets_nobody_in() -> None:
    members = Members()
    come(members, key(1), "w")
    come(members, key(2), "v")
    members.forget(members.by_key[key(1)])
    assert members.owner_of("w") is None
    assert key(1) not in members.by_key
    members.revoke(members.by_key[key(2)])
    members.forget(members.by_key[key(2)])
    assert members.owner_of("v") is None
    assert members.view.verdict(LAN_ADDRESS, key(2)) is Verdict.REFUSED
    strict = Members(needs_approval=True)
    knock(strict, key(3))
    strict.approve(strict.waiting[key(3)], 1.0)
    strict.forget(strict.by_key[key(3)])
    assert knock(strict, key(3)) == "access.pending"


def test_a_key_has_so_many_ids_and_the_oldest_goes() -> None:
    members = Members()
    for n in range(MAX_IDS_OF_KEY + 1):
        come(members, key(1), f"w{n}")
    assert members.owner_of("w0") is None
    assert members.owner_of("w1") == key(1)
    assert len(members.by_key[key(1)].worker_ids) == MAX_IDS_OF_KEY


def test_where_too_many_keys_come_clients_go_before_workers_and_revoked_ones_never() -> None:
    members = Members()
    come(members, key(0), "gone")
    members.revoke(members.by_key[key(0)])
    come(members, key(1), "w")
    for n in range(2, MAX_MEMBERS + 1):
        come(members, key(n))
    assert len(members.by_key) == MAX_MEMBERS + 1 - MEMBERS_LET_GO
    assert members.owner_of("w") == key(1)
    assert key(0) in members.view.revoked
    assert key(2) not in members.by_key
    assert key(MAX_MEMBERS) in members.by_key


def test_who_is_connected_never_goes_to_make_room() -> None:
    members = Members()
    there = {key(1), key(2)}
    for n in range(1, MAX_MEMBERS + 1):
        come(members, key(n), "w" if n == 1 else "")
    members.make_room(lambda: there)
    assert there <= set(members.by_key)
    assert key(3) not in members.by_key
    for n in range(MAX_MEMBERS + 1, MAX_MEMBERS + 1 + MEMBERS_LET_GO):
        come(members, key(n))
    there |= set(members.by_key)
    members.make_room(lambda: there)
    assert there == set(members.by_key)


def test_attempts_of_a_revoked_key_stay_refused_when_it_is_forgotten() -> None:
    members = Members()
    come(members, key(1), "w")
    members.revoke(members.by_key[key(1)])
    members.forget(members.by_key[key(1)])
    for each in (members, again(members)):
        assert each.owner_of("w") is None
        assert each.is_revoked_tag(worker_tag("w"))
        each.forget(each.by_key[key(1)])
        assert each.is_revoked_tag(worker_tag("w"))
        come(each, key(2), "w")  # the id is another's by now, and so are its attempts
        assert not each.is_revoked_tag(worker_tag("w"))
        each.renew()
        assert not each.is_revoked_tag(worker_tag("w"))
    members.approve(members.by_key[key(1)], 1.0)
    assert not members.by_key[key(1)].freed_ids


def test_whoever_makes_up_workers_has_nobody_elses_id_freed() -> None:
    members = Members()
    members.come(key(0), "worker", "old", "10.0.0.2", 1.0)
    for n in range(1, MAX_MEMBERS + MEMBERS_LET_GO):
        members.make_room(set)
        members.come(key(n), "worker", f"w{n}", "10.0.0.66", 2.0)
    assert members.owner_of("old") == key(0)


def test_where_approval_is_needed_nobody_goes_to_make_room() -> None:
    kept = [KeptMember(key=key(n).hex(), standing=Membership.ADMITTED) for n in range(MAX_MEMBERS)]
    members = Members(needs_approval=True, kept=kept, own={key(10**6)})
    knock(members, key(MAX_MEMBERS))
    waiting = members.waiting[key(MAX_MEMBERS)]
    with pytest.raises(ForbiddenError, match="10000"):
        members.approve(waiting, 1.0)
    members.revoke(waiting)  # but who is to go goes
    assert key(MAX_MEMBERS) in again(members).view.revoked
    come(members, key(10**6), "w")  # one of our own: let in, and not noted
    assert len(members.by_key) == MAX_MEMBERS + 1


def test_of_those_who_are_to_go_there_are_so_many_at_most() -> None:
    most = MAX_MEMBERS + MAX_REVOKED_BEYOND
    kept = [KeptMember(key=key(n).hex(), standing=Membership.REVOKED) for n in range(most)]
    members = Members(needs_approval=True, kept=kept)
    knock(members, key(most))
    with pytest.raises(ForbiddenError, match="11000"):
        members.revoke(members.waiting[key(most)])


def test_a_file_that_gives_an_id_to_two_keys_gives_it_to_the_first() -> None:
    rows = [
        KeptMember(key=key(n).hex(), standing=Membership.ADMITTED, worker_ids=("w",))
        for n in (1, 2)
    ]
    assert Members(kept=rows).owner_of("w") == key(1)


KEYS = st.integers(0, 5).map(key)
IDS = st.sampled_from(("a", "b", "c"))
OWN = key(5)


class Histories(RuleBasedStateMachine):
    """Plays keys that knock, say HELLO and are changed by people, against a plain model."""

    @initialize(needs_approval=st.booleans())
    def begin(self, needs_approval: bool) -> None:
        self.members = Members(needs_approval=needs_approval, own={OWN})
        self.admitted: set[bytes] = set()
        self.revoked: set[bytes] = set()
        self.bound: dict[str, bytes] = {}
        self.at = 1e9
        self.now = 1.0

    def may_come(self, who: bytes) -> bool:
        if who in self.revoked:
            return False
        return who == OWN or who in self.admitted or not self.members.needs_approval

    @rule(who=KEYS)
    def somebody_knocks(self, who: bytes) -> None:
        code = knock(self.members, who, at=self.at)
        assert (code == "") is self.may_come(who)
        assert (who in self.members.waiting) is (code == "access.pending")

    @rule(who=KEYS, worker_id=IDS)
    def a_worker_says_hello(self, who: bytes, worker_id: str) -> None:
        if not self.may_come(who) or self.members.owner_of(worker_id) not in (None, who):
            return
        come(self.members, who, worker_id, self.at)
        self.admitted.add(who)
        self.bound[worker_id] = who

    def known(self, who: bytes) -> Member | None:
        return self.members.by_key.get(who) or self.members.waiting.get(who)

    @rule(who=KEYS)
    def somebody_is_approved(self, who: bytes) -> None:
        member = self.known(who)
        if member is not None:
            self.members.approve(member, self.at)
            self.admitted.add(who)
            self.revoked.discard(who)

    @rule(who=KEYS)
    def somebody_is_revoked(self, who: bytes) -> None:
        member = self.known(who)
        if member is not None and who != OWN:
            self.members.revoke(member)
            self.admitted.discard(who)
            self.revoked.add(who)

    @rule(who=KEYS)
    def somebody_is_forgotten(self, who: bytes) -> None:
        member = self.known(who)
        if member is not None:
            self.members.forget(member)
            self.admitted.discard(who)
            self.bound = {name: owner for name, owner in self.bound.items() if owner != who}

    @rule(seconds=st.floats(-1e9, 1e9))
    def the_wall_clock_is_set(self, seconds: float) -> None:
        self.at += seconds

    @rule(seconds=st.floats(0.0, 1e7))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.members.strikes.expire(self.now)

    @rule(needs_approval=st.booleans())
    def the_orchestrator_is_started_again(self, needs_approval: bool) -> None:
        """In either mode: who came in as on a LAN is admitted where approval is needed."""
        self.members = again(self.members, needs_approval=needs_approval)

    @invariant()
    def who_was_let_in_is_let_in(self) -> None:
        for who in (*self.admitted, OWN):
            assert self.members.view.verdict(LAN_ADDRESS, who) is Verdict.ADMITTED

    @invariant()
    def who_was_shown_out_stays_out(self) -> None:
        for who in self.revoked:
            assert self.members.view.verdict(LAN_ADDRESS, who) is Verdict.REFUSED
            assert who not in self.members.waiting

    @invariant()
    def an_id_has_one_key(self) -> None:
        for name, owner in self.bound.items():
            assert self.members.owner_of(name) == owner
        listed = [name for member in self.members.all() for name in member.worker_ids]
        assert sorted(listed) == sorted(self.bound)

    @invariant()
    def a_key_is_in_one_list(self) -> None:
        assert not self.members.waiting.keys() & self.members.by_key.keys()


def test_any_history_locks_nobody_out_and_lets_nobody_in() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=60, deadline=None))
