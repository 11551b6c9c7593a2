"""Fingerprints and proofs of membership."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.membership import (
    PROOF_BYTES,
    fingerprint,
    is_same_proof,
    join_proof,
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


def test_a_proof_holds_for_one_direction_mesh_and_pair_of_keys_only() -> None:
    proofs = [
        join_proof("key", "mesh", A, B),
        welcome_proof("key", "mesh", A, B),
        join_proof("key", "mesh", B, A),
        join_proof("key", "mesi", A, B),
        join_proof("kez", "mesh", A, B),
    ]
    assert len(set(proofs)) == len(proofs)
    assert {len(each) for each in proofs} == {PROOF_BYTES}
    assert is_same_proof(proofs[0], join_proof("key", "mesh", A, B))
    assert not is_same_proof(proofs[0], b"")
