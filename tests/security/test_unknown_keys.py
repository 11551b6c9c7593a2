"""Keys that nobody has approved, at a broker where they have to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from d8mesh.core.broker.members import MAX_WAITING
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.edge.transport.keys import KeyPair, new_pair
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_zmtp import RawZmtp, needs_sodium


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh(settings={"D8_JOIN": "approve"}) as made:
        yield made


def knock(abused: Abused, keys: KeyPair) -> None:
    """Do the whole handshake, which ends in ZAP's 400."""
    server_key = abused.mesh.server_key
    with (
        RawZmtp(abused.mesh.broker_port) as odd,
        pytest.raises(AssertionError, match=r"ERROR.*400"),
    ):
        odd.shake_hands(server_key, keys)


@needs_sodium
def test_21_an_unknown_key_is_refused_counted_once_and_waits(abused: Abused) -> None:
    keys = new_pair()
    with abused.refused("broker", "access.pending"):
        knock(abused, keys)
    told = abused.members()
    (waiting,) = [each for each in told if each["standing"] == "waiting"]
    assert waiting["fingerprint"] == fingerprint(keys.public)
    with abused.refused("broker", "access.pending", times=2):
        knock(abused, keys)
        knock(abused, keys)


@needs_sodium
def test_21_however_many_keys_knock_the_list_of_those_who_wait_is_bounded(abused: Abused) -> None:
    count = MAX_WAITING + 44
    with abused.refused("broker", "access.pending", times=count):
        for _ in range(count):
            knock(abused, new_pair())
    told = abused.members()
    assert sum(each["standing"] == "waiting" for each in told) == MAX_WAITING
