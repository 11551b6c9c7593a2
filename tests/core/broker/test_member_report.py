"""How members are listed, and whom a name or fingerprint means."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.member_report import found, listing
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.members_view import Knock
from d8mesh.core.protocol.membership import fingerprint, mesh_secret
from d8mesh.errors import AmbiguousMemberError, UnknownMemberError
from tests.core.wired_broker import WiredBroker

ONE, TWO, OWN = b"1" * 32, b"2" * 32, b"o" * 32


@pytest.fixture
def members() -> Members:
    made = Members()
    made.come(ONE, "worker", "pi", "10.0.0.1", 1.0)
    made.come(TWO, "client", "laptop", "10.0.0.2", 2.0)
    return made


def test_a_member_is_found_by_fingerprint_id_or_host(members: Members) -> None:
    shown = fingerprint(ONE)
    for who in (shown, shown.upper(), shown.replace("-", ""), "pi"):
        assert found(members, "revoke", who).key == ONE
    assert found(members, "revoke", "laptop").key == TWO
    with pytest.raises(UnknownMemberError, match="is known here"):
        found(members, "revoke", "nobody")


def test_a_worker_that_made_its_id_up_is_found_by_its_host(members: Members) -> None:
    members.come(b"4" * 32, "worker", "attic-0a1b2c3d", "10.0.0.4", 4.0)
    members.come(b"5" * 32, "worker", "nas-0a1b2c3d-00ff00ff", "10.0.0.5", 5.0)
    assert found(members, "revoke", "attic").key == b"4" * 32
    assert found(members, "revoke", "nas").key == b"5" * 32
    for who in ("att", "nas-0a1b2c3d", "attic-0a1b2c3d-", "0a1b2c3d", ""):
        with pytest.raises(UnknownMemberError):
            found(members, "revoke", who)
    members.needs_approval = True
    members.renew()
    waits(members, b"6" * 32, "attic-99999999")
    with pytest.raises(AmbiguousMemberError, match="own screen shows"):
        found(members, "approve", "attic")
    assert found(members, "revoke", "attic").key == b"4" * 32


def test_a_name_of_several_is_answered_with_their_fingerprints(members: Members) -> None:
    members.come(b"3" * 32, "client", "laptop", "10.0.0.3", 3.0)
    with pytest.raises(AmbiguousMemberError, match=r"laptop.*2 keys") as told:
        found(members, "revoke", "laptop")
    assert f"{fingerprint(TWO)} at 10.0.0.2" in str(told.value)


def waits(members: Members, key: bytes, name: str) -> None:
    members.announce(key, name)
    members.knock(Knock(key, "10.0.0.9", "access.pending"), 2.0)


def test_the_name_of_a_key_that_waits_lets_nobody_in() -> None:
    members = Members(needs_approval=True)
    waits(members, TWO, "pi")
    for action in ("approve", "revoke", "forget"):
        with pytest.raises(AmbiguousMemberError, match="own screen shows") as told:
            found(members, action, "pi")
        assert f"{fingerprint(TWO)} at 10.0.0.9" in str(told.value)
        assert found(members, action, fingerprint(TWO)).key == TWO


def test_who_waits_under_the_name_of_another_is_never_meant_by_it(members: Members) -> None:
    members.needs_approval = True
    members.renew()
    waits(members, b"3" * 32, "pi")
    for action in ("revoke", "forget"):
        assert found(members, action, "pi").key == ONE
    members.revoke(members.by_key[ONE])
    with pytest.raises(AmbiguousMemberError, match="own screen shows"):
        found(members, "approve", "pi")


def test_of_several_of_a_name_the_one_is_meant_with_which_it_can_be_done() -> None:
    members = Members(needs_approval=True, own={ONE})
    members.come(ONE, "worker", "pi", "10.0.0.1", 1.0)
    members.announce(TWO, "pi")
    members.knock(Knock(TWO, "10.0.0.2", "access.pending"), 2.0)
    members.approve(members.waiting[TWO], 3.0)
    with pytest.raises(AmbiguousMemberError):
        found(members, "approve", "pi")
    members.revoke(members.by_key[TWO])
    assert found(members, "revoke", "pi").key == ONE


def test_done_twice_is_done_once_more(members: Members) -> None:
    members.revoke(members.by_key[ONE])
    assert found(members, "revoke", "pi").key == ONE


def test_nobody_can_call_itself_what_another_key_is_shown_as(members: Members) -> None:
    members.come(TWO, "worker", fingerprint(ONE), "10.0.0.2", 2.0)
    assert found(members, "revoke", fingerprint(ONE)).key == ONE


def test_the_listing_says_how_each_stands_and_who_is_there(broker: WiredBroker) -> None:
    broker.state.members.own.add(OWN)
    broker.worker("pi", key=ONE)
    broker.client(key=OWN)
    body = listing(broker.state)
    assert (body["mode"], body["waiting"]) == (["lan"], 0)
    rows = body["members"]
    assert isinstance(rows, list)
    pi, own = rows
    assert (pi["name"], pi["kind"], pi["worker_ids"]) == ("pi", "worker", ["pi"])
    assert (pi["standing"], pi["is_connected"], pi["is_own"]) == ("admitted", True, False)
    assert (own["name"], own["is_own"], own["key"]) == ("pc", True, OWN.hex())
    assert own["banned_s"] is None


def test_the_listing_says_what_it_takes_to_come_in(broker: WiredBroker) -> None:
    members = broker.state.members
    members.needs_approval = True
    assert listing(broker.state)["mode"] == ["approve"]
    object.__setattr__(broker.state.policy, "mesh_secret", mesh_secret("a long mesh key", "m"))
    assert listing(broker.state)["mode"] == ["approve", "key"]
    members.needs_approval = False
    assert listing(broker.state)["mode"] == ["key"]
