"""A mesh with a key, asked over ZeroMQ by who does not know it: nothing is read or told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import structs

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.membership import join_proof, mesh_secret
from tests.nodes.running import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_sessions import FROM_CLIENTS, FROM_WORKERS, Raw, raw

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


def replace_proof(
    hello: m.WorkerHello | m.ClientHello, shown: bytes
) -> m.WorkerHello | m.ClientHello:
    return structs.replace(hello, proof=shown)
