"""Unknown keys where keys are approved: they wait, each knock is counted once, the list is bounded.

The number is that of the list of bad inputs in `docs/SECURITY.md`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from d8mesh.core.broker.members import MAX_WAITING
from d8mesh.edge.transport.keys import new_pair
from tests.end_to_end.processes import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_zmtp import RawZmtp, needs_sodium


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh(settings={"D8_JOIN": "approve"}) as made:
        yield made


def knock(abused: Abused) -> None:
    """Come once with a key that nobody knows."""
    server_key = bytes.fromhex(abused.health()["server_key"])
    with RawZmtp(abused.mesh.broker_port) as raw:
        try:
            raw.shake_hands(server_key, new_pair())
        except (AssertionError, OSError, EOFError):
            return
    raise AssertionError("an unknown key was let in")


@needs_sodium
def test_21_an_unknown_key_waits_and_is_counted_once(abused: Abused) -> None:
    with abused.refused("broker", "access.pending"):
        knock(abused)
    (waiting,) = [each for each in abused.members() if each["standing"] == "waiting"]
    assert not waiting["is_connected"]


@needs_sodium
def test_21_those_who_wait_are_so_many_at_most(abused: Abused) -> None:
    for _ in range(MAX_WAITING + 20):
        knock(abused)
    until(lambda: abused.rejected()["broker", "access.pending"] > MAX_WAITING + 20, "all counted")
    assert sum(each["standing"] == "waiting" for each in abused.members()) == MAX_WAITING
    abused.goes_on()
