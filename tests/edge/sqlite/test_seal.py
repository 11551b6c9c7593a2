"""What is sealed opens with its key, in its place, and nowhere else; no nonce comes twice."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.edge.sqlite.seal import (
    DATA_COLUMN,
    RESULT_COLUMN,
    SEALED_BYTES,
    Seal,
    SealError,
    is_sealed,
    plain_bytes,
)

KEY = bytes(range(32))


@given(payload=st.binary(max_size=300), row=st.integers(0, 2**63 - 1))
def test_a_payload_opens_with_the_key_of_the_file_at_every_later_start(
    payload: bytes, row: int
) -> None:
    sealed = Seal(KEY).close(DATA_COLUMN, row, payload)
    assert Seal(KEY).open(DATA_COLUMN, row, sealed) == payload
    assert plain_bytes(sealed) == len(payload)
    assert is_sealed(sealed) is bool(payload)


def test_it_opens_in_no_other_row_or_column_and_with_no_other_key() -> None:
    seal = Seal(KEY)
    sealed = seal.close(DATA_COLUMN, 7, b"secret")
    for column, row in ((DATA_COLUMN, 8), (RESULT_COLUMN, 7)):
        with pytest.raises(SealError):
            seal.open(column, row, sealed)
    with pytest.raises(SealError):
        Seal(bytes(32)).open(DATA_COLUMN, 7, sealed)
    with pytest.raises(SealError):
        seal.open(DATA_COLUMN, 7, b"in clear")


def test_each_byte_that_is_changed_is_seen() -> None:
    seal = Seal(KEY)
    sealed = seal.close(DATA_COLUMN, 7, b"secret")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealError):
            seal.open(DATA_COLUMN, 7, bytes(changed))


def test_no_two_payloads_have_the_same_head_in_one_start_or_in_two() -> None:
    seals = [Seal(KEY) for _ in range(50)]
    heads = {
        seal.close(DATA_COLUMN, 1, b"same")[: SEALED_BYTES - 16]
        for seal in seals
        for _ in range(200)
    }
    assert len(heads) == 50 * 200


@given(text=st.text(max_size=100))
def test_a_text_opens_for_its_task_alone(text: str) -> None:
    seal = Seal(KEY)
    sealed = seal.close_text(3, text)
    assert seal.open_text(3, sealed) == text
    if text:
        assert text not in sealed or len(text) < 8
        with pytest.raises(SealError):
            seal.open_text(4, sealed)


def test_a_text_that_is_cut_off_or_changed_does_not_open() -> None:
    seal = Seal(KEY)
    sealed = seal.close_text(3, "why it failed")
    cut = [sealed[:end] for end in range(1, len(sealed))]
    other = "A" if sealed[5] != "A" else "B"
    for text in (*cut, sealed[:5] + other + sealed[6:], sealed[:5] + "\xe4"):
        with pytest.raises(SealError):
            seal.open_text(3, text)


def test_the_key_is_not_shown() -> None:
    assert repr(Seal(KEY)) == "Seal(…)"


def test_the_library_is_loaded_only_when_something_is_sealed() -> None:
    code = "import sys, d8mesh.edge.sqlite; print([m for m in sys.modules if 'cryptography' in m])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
