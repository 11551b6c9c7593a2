"""Fingerprints and proofs of membership."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.membership import (
    LINK_PASS_PREFIX,
    NOTHING_TO_SHOW,
    PROOF_BYTES,
    Credentials,
    announced_proof,
    fingerprint,
    is_same_proof,
    join_proof,
    link_pass,
    mesh_secret,
    welcome_proof,
)

KEYS = st.binary(min_size=32, max_size=32)
A, B = b"a" * 32, b"b" * 32


@given(KEYS)
def test_a_fingerprint_is_four_groups_of_four(key: bytes) -> None:
    assert re.fullmatch(r"([a-z2-7]{4}-){3}[a-z2-7]{4}", fingerprint(key))


def test_another_key_has_another_fingerprint() -> None:
    assert fingerprint(A) != fingerprint(B)
    assert fingerprint(A) == fingerprint(bytes(A))


def test_a_proof_holds_for_one_purpose_secret_and_pair_of_keys_only() -> None:
    proofs = [
        join_proof(b"s" * 32, A, B),
        welcome_proof(b"s" * 32, A, B),
        join_proof(b"s" * 32, B, A),
        join_proof(b"t" * 32, A, B),
        announced_proof(b"s" * 32, A),
        announced_proof(b"s" * 32, B),
    ]
    assert len(set(proofs)) == len(proofs)
    assert {len(each) for each in proofs} == {PROOF_BYTES}
    assert is_same_proof(proofs[0], join_proof(b"s" * 32, A, B))
    assert not is_same_proof(proofs[0], b"")


def test_the_pass_of_a_link_is_of_that_link_and_mesh_key_alone() -> None:
    passes = {link_pass(s * 32, link) for s in (b"s", b"t") for link in ("one", "two")}
    assert len(passes) == 4
    assert all(each.startswith(LINK_PASS_PREFIX) for each in passes)
    assert link_pass(b"s" * 32, "one") in passes


def test_a_secret_is_of_one_key_and_mesh() -> None:
    one = mesh_secret("k" * 16, "d8")
    assert one == mesh_secret("k" * 16, "d8")
    assert len({one, mesh_secret("k" * 17, "d8"), mesh_secret("k" * 16, "d9")}) == 3


def test_credentials_show_a_proof_to_one_orchestrator_and_accept_its_welcome_alone() -> None:
    secret = b"s" * 32
    ours = Credentials(B, secret)
    assert ours.shown_to(A) == join_proof(secret, A, B)
    assert ours.accept(A, welcome_proof(secret, A, B))
    assert not ours.accept(A, welcome_proof(secret, B, A))
    assert not ours.accept(A, join_proof(secret, A, B))
    assert not ours.accept(A, b"")
    assert not ours.accept(None, welcome_proof(secret, A, B))
    assert ours.shown_to(None) == b""
    assert secret.hex() not in repr(ours)
    assert repr(secret) not in repr(ours)


def test_without_a_mesh_key_nothing_is_shown_or_asked() -> None:
    assert NOTHING_TO_SHOW.shown_to(A) == b""
    assert NOTHING_TO_SHOW.accept(A, b"")
    assert NOTHING_TO_SHOW.accept(None, b"whatever")
