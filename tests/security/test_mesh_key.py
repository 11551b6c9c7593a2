"""A mesh with a key, asked over ZeroMQ by who does not know it: nothing is read or told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from msgspec import structs

from d8mesh.core.broker.unwelcome import MAX_UNWELCOME_PER_ADDRESS, UNWELCOME_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.membership import join_proof, mesh_secret
from d8mesh.edge.transport.connections import UNHEARD
from tests.nodes.running import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_sessions import FROM_CLIENTS, FROM_WORKERS, Raw, raw
from tests.security.raw_zmtp import RawZmtp, needs_sodium

KEY = "a-mesh-key-that-is-long-enough-8471"
OTHER = "another-mesh-key-that-is-long-2295"


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh(settings={"D8_MESH_KEY": KEY}) as made:
        yield made


def proof(peer: Raw, key: str) -> bytes:
    return join_proof(mesh_secret(key, peer.mesh), peer.server_key, peer.keys.public)


@pytest.mark.parametrize("kind", ["worker", "client"])
def test_26_a_hello_without_the_mesh_key_opens_nothing(abused: Abused, kind: str) -> None:
    with raw(abused) as peer, raw(abused) as other:
        hello = peer.worker() if kind == "worker" else peer.client()
        stolen = proof(other, KEY)  # as heard by whoever it was shown to: of no use to others
        shown = [b"", b"x" * 32, proof(peer, OTHER), stolen]
        with abused.refused("broker", "access.key", times=len(shown)):
            for each in shown:
                peer.say(replace_proof(hello, each))
                assert "D8_MESH_KEY" in peer.refused("access.key").message
        peer.join(replace_proof(hello, proof(peer, KEY)))


@pytest.mark.parametrize(
    "said", [*FROM_CLIENTS, *FROM_WORKERS, m.Goodbye("bye")], ids=lambda said: type(said).__name__
)
def test_26_no_verb_is_read_of_who_has_not_shown_the_key(abused: Abused, said: m.Message) -> None:
    with raw(abused) as peer:
        peer.say(peer.client())
        peer.refused("access.key")
        with abused.refused_as({("broker", "session.unknown"): 2 - isinstance(said, m.Goodbye)}):
            peer.say(said, m.Watch([]))
            until(peer.link, m.Rehello)
            kinds = {type(each) for each in peer.heard()}
        assert kinds <= {m.Rehello}


@needs_sodium
def test_22_who_has_not_shown_the_key_takes_the_places_of_nobody(abused: Abused) -> None:
    server_key, mesh = (abused.health()[name] for name in ("server_key", "mesh"))
    hello = encode(m.ClientHello(1, mesh, "0123456789abcdef", "stranger"))
    strangers: list[RawZmtp] = []
    try:
        for _ in range(MAX_UNWELCOME_PER_ADDRESS + 50):
            odd = RawZmtp(abused.mesh.broker_port).shake_hands(bytes.fromhex(server_key))
            odd.send(hello)
            strangers.append(odd)
        begun = time.monotonic()
        assert strangers[-1].ends_within(UNWELCOME_S / 2), "there are too many of them"
        abused.goes_on()
        assert all(each.ends_within(UNWELCOME_S + 10) for each in strangers)
        assert time.monotonic() - begun < UNWELCOME_S + 10
    finally:
        for each in strangers:
            each.close()
    assert abused.rejected()["broker", UNHEARD] == len(strangers)


def replace_proof(
    hello: m.WorkerHello | m.ClientHello, shown: bytes
) -> m.WorkerHello | m.ClientHello:
    return structs.replace(hello, proof=shown)
