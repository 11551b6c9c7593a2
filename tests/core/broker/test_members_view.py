"""What the gate tells a connection, by its address and its key."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.members_view import MembersView
from d8mesh.core.protocol.membership import Verdict

KNOWN, REVOKED, BANNED, STRANGER = (bytes([n]) * 32 for n in range(4))
LAN = MembersView(revoked=frozenset({REVOKED}), banned=frozenset({BANNED}))
APPROVE = MembersView(
    needs_approval=True,
    admitted=frozenset({KNOWN, BANNED}),
    revoked=frozenset({REVOKED}),
    banned=frozenset({BANNED}),
)


@pytest.mark.parametrize(
    ("view", "key", "verdict", "code"),
    [
        (LAN, STRANGER, Verdict.ADMITTED, ""),
        (LAN, None, Verdict.ADMITTED, ""),
        (LAN, REVOKED, Verdict.REFUSED, "access.revoked"),
        (LAN, BANNED, Verdict.WAITING, "access.banned"),
        (APPROVE, KNOWN, Verdict.ADMITTED, ""),
        (APPROVE, STRANGER, Verdict.WAITING, "access.pending"),
        (APPROVE, None, Verdict.WAITING, "access.pending"),
        (APPROVE, REVOKED, Verdict.REFUSED, "access.revoked"),
        (APPROVE, BANNED, Verdict.WAITING, "access.banned"),
    ],
)
def test_a_key_is_told_how_it_stands(
    view: MembersView, key: bytes | None, verdict: Verdict, code: str
) -> None:
    for address in ("192.168.1.2", "127.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        assert view.verdict(address, key) is verdict
        assert view.refusal(address, key) == code


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860::1", "169.254.169.254", "", "nonsense"])
def test_an_address_beyond_the_lan_is_refused_whatever_its_key(address: str) -> None:
    for view in (LAN, APPROVE):
        assert view.verdict(address, KNOWN) is Verdict.REFUSED
        assert view.refusal(address, KNOWN) == "access.address"
    public = MembersView(allows_public=True, revoked=frozenset({REVOKED}))
    assert public.verdict(address, STRANGER) is Verdict.ADMITTED
    assert public.verdict(address, REVOKED) is Verdict.REFUSED
