"""Effects: plain values; what promises something waits unless it is said otherwise."""

from __future__ import annotations

from d8mesh.core.broker.effects import Loaded, Peer, Send
from d8mesh.core.protocol.messages import Beat


def test_a_send_waits_for_the_commit_unless_told_otherwise() -> None:
    assert Send(Peer(b"x"), Beat(1)).waits
    assert not Send(Peer(b"x"), Beat(1), waits=False).waits


def test_a_peer_is_its_routing_id_address_and_key() -> None:
    assert Peer(b"x") == (b"x", "", None)
    assert Loaded(1, None).answer is None
