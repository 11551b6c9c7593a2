"""Tokens are checked without a look-up, by a later start too, and cannot be made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.tokens import TOKEN_BYTES, TokenSigner, worker_tag

SECRET = bytes(range(32))


@given(st.integers(0, 2**32 - 1), st.integers(0, 65_535), st.text(min_size=1, max_size=40))
def test_a_token_says_its_epoch_attempt_and_worker(epoch: int, n: int, worker: str) -> None:
    token = TokenSigner(SECRET, epoch).token(
        TokenSigner(SECRET, epoch).heading(worker, n), "task-1"
    )
    claim = TokenSigner(SECRET, 1).check(token, "task-1")
    assert claim is not None
    assert claim == (epoch, n, worker_tag(worker))


@given(st.integers(0, TOKEN_BYTES * 8 - 1))
def test_a_changed_bit_makes_it_worthless(bit: int) -> None:
    signer = TokenSigner(SECRET, 7)
    token = signer.token(signer.heading("w", 1), "task-1")
    changed = bytearray(token)
    changed[bit // 8] ^= 1 << bit % 8
    assert signer.check(bytes(changed), "task-1") is None


def test_another_task_secret_or_length_is_refused() -> None:
    signer = TokenSigner(SECRET, 7)
    token = signer.token(signer.heading("w", 1), "task-1")
    assert signer.check(token, "task-2") is None
    assert TokenSigner(bytes(32), 7).check(token, "task-1") is None
    assert signer.check(token[:-1], "task-1") is None
