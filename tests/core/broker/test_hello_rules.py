"""What a HELLO is refused for, and that each refusal is counted once and opens nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.core.broker import state
from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.membership import (
    fingerprint,
    join_proof,
    mesh_secret,
    welcome_proof,
)
from tests.core.wired_broker import S, WiredBroker, beat, hello

KEY, OTHER, SERVER = b"1" * 32, b"2" * 32, b"s" * 32
SECRET = mesh_secret("a long mesh key", "m")


def refused(broker: WiredBroker, peer: Peer, code: str) -> str:
    """Return why a peer was refused: once, counted once, and it has no session."""
    (said,) = broker.got(peer, m.Refused)
    assert (said.code, broker.state.metrics.rejected) == (code, {code: 1})
    assert not broker.got(peer, m.Welcome)
    assert broker.state.registry.by_peer(peer) is None
    return said.message


def test_a_worker_id_stays_with_its_key_also_while_the_worker_is_away(broker: WiredBroker) -> None:
    first = broker.worker("w", key=KEY)
    broker.say(first, m.Goodbye("bye"))
    thief = broker.worker("w", key=OTHER)
    assert "join forget w" in refused(broker, thief, "worker.id_taken")
    broker.restart()
    assert broker.got(broker.worker("w", key=OTHER), m.Refused)
    assert broker.got(broker.worker("w", key=KEY), m.Welcome)


def test_a_worker_id_that_nobody_has_by_a_key_is_its_who_lives_with_it(broker: WiredBroker) -> None:
    old = broker.worker("w")
    refused(broker, broker.worker("w", key=KEY, boot="b2"), "worker.id_taken")
    broker.say(old, m.Goodbye("bye"))
    assert broker.got(broker.worker("w", key=KEY, boot="b2"), m.Welcome)


def test_the_session_of_a_client_is_its_keys(broker: WiredBroker) -> None:
    broker.client(key=KEY)
    refused(broker, broker.client(key=OTHER), "access.forbidden")
    assert broker.got(broker.client(key=KEY), m.Welcome)


def test_the_session_of_a_client_stays_its_keys_while_it_is_away(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_SESSION_KEYS", 2)
    broker.say(broker.client(key=KEY), m.Goodbye("bye"))
    refused(broker, broker.client(key=OTHER), "access.forbidden")
    broker.say(broker.client("b" * 16, key=OTHER), m.Goodbye("bye"))
    broker.say(broker.client(key=KEY), m.Goodbye("bye"))  # came last
    broker.say(broker.client("c" * 16, key=OTHER), m.Goodbye("bye"))
    assert set(broker.state.session_keys) == {S, "c" * 16}
    assert broker.got(broker.client(key=KEY), m.Welcome)


def test_a_session_that_a_stranger_took_after_a_restart_goes_back_to_a_key_of_our_own(
    tmp_path: Path,
) -> None:
    broker = WiredBroker(tmp_path, joining={"own": {KEY}})
    broker.client(key=KEY)
    broker.restart()
    thief = broker.client(key=OTHER)
    assert broker.got(thief, m.Welcome)
    assert broker.got(broker.client(key=KEY), m.Welcome)
    broker.say(thief, m.Watch([]))
    assert broker.got(thief, m.Rehello)
    assert broker.got(broker.client(key=OTHER), m.Refused)
    broker.close()


@pytest.mark.parametrize("proof", [b"", b"x" * 32, join_proof(SECRET, SERVER, OTHER)])
def test_who_does_not_know_the_mesh_key_is_refused(tmp_path: Path, proof: bytes) -> None:
    broker = WiredBroker(tmp_path, mesh_secret=SECRET, server_key=SERVER)
    why = refused(broker, broker.worker("w", key=KEY, proof=proof), "access.key")
    assert "D8_MESH_KEY" in why
    broker.state.metrics.rejected.clear()
    refused(broker, broker.client(key=KEY, proof=proof), "access.key")
    broker.state.metrics.rejected.clear()
    refused(broker, broker.worker("w", proof=proof), "access.key")
    assert not broker.state.members.by_key
    broker.close()


def test_who_knows_the_mesh_key_is_shown_that_the_orchestrator_does(tmp_path: Path) -> None:
    broker = WiredBroker(tmp_path, mesh_secret=SECRET, server_key=SERVER)
    proof = join_proof(SECRET, SERVER, KEY)
    for peer in (broker.worker("w", key=KEY, proof=proof), broker.client(key=KEY, proof=proof)):
        (welcome,) = broker.got(peer, m.Welcome)
        assert welcome.proof == welcome_proof(SECRET, SERVER, KEY)
    broker.close()


@pytest.mark.parametrize("key", [KEY, None])
def test_who_was_not_approved_has_no_session(tmp_path: Path, key: bytes | None) -> None:
    broker = WiredBroker(tmp_path, joining={"needs_approval": True})
    peer = broker.worker("w", key=key)
    why = refused(broker, peer, "access.pending")
    assert key is None or f"join approve {fingerprint(key)}" in why
    assert broker.dropped == [peer]
    broker.close()


def test_a_connection_stays_what_it_said_first(broker: WiredBroker) -> None:
    worker, client = broker.worker("w", key=KEY), broker.client(key=OTHER)
    broker.sent.clear()
    for peer, said in (
        (worker, hello("v")),
        (worker, m.ClientHello(1, "m", S, "pc")),
        (client, hello("v")),
        (client, m.ClientHello(1, "m", "f" * 16, "pc")),
    ):
        broker.say(peer, said)
        assert broker.got(peer, m.Refused)[0].code == "access.forbidden"
    assert broker.state.metrics.rejected == {"access.forbidden": 4}
    assert set(broker.state.registry.workers) == {"w"}
    assert set(broker.state.clients) == {S}
    broker.say(worker, beat([], 0))
    broker.say(worker, hello("w"))  # as what it is
    assert len(broker.got(worker, m.Welcome)) == 1


def test_a_worker_whose_id_another_start_took_over_may_take_another(broker: WiredBroker) -> None:
    first = broker.worker("w", key=KEY)
    broker.worker("w", key=KEY, boot="b2")
    broker.say(first, hello("w"))
    assert broker.got(first, m.Refused)[0].code == "worker.id_taken"
    broker.say(first, hello("w-b1"))
    assert broker.state.members.owner_of("w-b1") == KEY
