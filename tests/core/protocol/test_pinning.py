"""Who may be contacted, and who is asked first."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.membership import announced_proof, fingerprint
from d8mesh.core.protocol.pinning import (
    FIRST_CONTACT_S,
    MAX_PINS,
    MAX_WAITING_KEYS,
    FirstContact,
    Pin,
    Trust,
    parse_fingerprint,
    trust_in,
    with_pin,
    without_pin,
)
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import ConfigError

A, B = b"a" * 32, b"b" * 32
SECRET = b"s" * 32


def who(key: bytes | None, proof: bytes = b"") -> KnownBroker:
    return KnownBroker("orch", ("10.0.0.1",), 7010, 7001, key, proof)


def pin(key: bytes, *, is_met: bool = True) -> Pin:
    return Pin(fingerprint(key), key if is_met else None)


@pytest.mark.parametrize("is_met", [True, False])
def test_a_pinned_key_is_contacted_and_another_is_not(is_met: bool) -> None:
    pins = [pin(A, is_met=is_met)]
    assert trust_in(who(A), pins, secret=None) is Trust.PINNED
    assert trust_in(who(B), pins, secret=None) is Trust.STRANGE
    assert not Trust.STRANGE.is_open


def test_where_nothing_is_known_the_first_may_be_contacted() -> None:
    assert trust_in(who(A), [], secret=None) is Trust.FIRST
    assert Trust.FIRST.is_open


def test_who_tells_no_key_is_never_contacted() -> None:
    for is_own in (True, False):
        assert trust_in(who(None), [], secret=None, is_own=is_own) is Trust.KEYLESS
    assert not Trust.KEYLESS.is_open


def test_with_a_mesh_key_the_proof_alone_decides_pinned_or_not() -> None:
    good = announced_proof(SECRET, A)
    for pins in ([], [pin(A)], [pin(B)]):
        assert trust_in(who(A, good), pins, secret=SECRET) is Trust.PROVEN
        for proof in (b"", good[:-1], announced_proof(b"t" * 32, A), announced_proof(SECRET, B)):
            assert trust_in(who(A, proof), pins, secret=SECRET) is Trust.UNPROVEN
    assert not Trust.UNPROVEN.is_open


def test_a_proof_that_is_repeated_for_another_key_proves_nothing() -> None:
    assert trust_in(who(B, announced_proof(SECRET, A)), [], secret=SECRET) is Trust.UNPROVEN


def test_the_orchestrator_of_the_own_data_folder_is_trusted_whatever_is_pinned() -> None:
    assert trust_in(who(B), [pin(A)], secret=None, is_own=True) is Trust.OWN


def test_of_two_strangers_one_has_its_turn_and_the_other_when_that_says_nothing() -> None:
    first = FirstContact()
    assert first.may(A, 0.0)
    assert not first.may(B, 1.0)
    assert first.may(A, FIRST_CONTACT_S - 1)
    assert not first.may(A, FIRST_CONTACT_S), "the other one has waited"
    assert first.may(B, FIRST_CONTACT_S)
    assert first.may(A, 2 * FIRST_CONTACT_S)
    assert not first.may(B, 2 * FIRST_CONTACT_S)


def test_who_is_alone_keeps_being_tried_and_few_wait() -> None:
    first = FirstContact()
    assert all(first.may(A, at) for at in (0.0, FIRST_CONTACT_S, 5 * FIRST_CONTACT_S))
    for n in range(1000):
        first.may(n.to_bytes(32), 5 * FIRST_CONTACT_S)
    assert len(first._waiting) == MAX_WAITING_KEYS


def test_whom_a_person_names_has_its_turn_before_all_others() -> None:
    first = FirstContact()
    first.expect(0.0)
    assert not first.may(A, 1.0)
    first.prefer(B, 2.0)
    assert not first.may(A, 3.0)
    assert first.may(B, 3.0)
    assert first.may(A, 2.0 + FIRST_CONTACT_S), "the one that was named has had its turn"


def test_where_nobody_answers_the_next_has_its_turn_at_once() -> None:
    first = FirstContact()
    assert first.may(A, 0.0)
    first.failed(B)
    assert not first.may(B, 1.0)
    first.failed(A)
    assert first.may(B, 1.0)


def test_who_lets_us_wait_keeps_its_turn() -> None:
    first = FirstContact()
    assert first.may(A, 0.0)
    first.answered(A, 9.0)
    first.answered(B, 9.0)  # it is not B's turn: no matter what it says
    assert not first.may(B, 9.0 + FIRST_CONTACT_S - 1)
    assert first.may(B, 9.0 + FIRST_CONTACT_S)


def test_a_pin_stands_once_and_the_oldest_makes_room() -> None:
    pins: tuple[Pin, ...] = (pin(A, is_met=False), pin(B))
    pins = with_pin(pins, pin(A))
    assert pins == (pin(B), pin(A))
    assert without_pin(pins, fingerprint(B)) == (pin(A),)
    for n in range(MAX_PINS):
        pins = with_pin(pins, pin(bytes([n]) * 32))
    assert len(pins) == MAX_PINS
    assert pin(A) not in pins[:-MAX_PINS]


def test_a_person_types_a_fingerprint_or_a_key() -> None:
    told = fingerprint(A)
    assert parse_fingerprint(told) == (told, None)
    assert parse_fingerprint(f" {told.upper()} ") == (told, None)
    assert parse_fingerprint(told.replace("-", "")) == (told, None)
    assert parse_fingerprint(A.hex()) == (told, A)
    for wrong in ("", "k3fq-2mzd-7xwa", "k3fq-2mzd-7xwa-pq40", A.hex()[:-1], "k3fq-" * 4):
        with pytest.raises(ConfigError, match="is no fingerprint"):
            parse_fingerprint(wrong)
