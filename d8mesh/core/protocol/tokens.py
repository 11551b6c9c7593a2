"""Tokens: what a worker shows with a result, so that only issued attempts can finish a task.

A token is 16 bytes: epoch (4), attempt (2), worker tag (3), and 7 bytes of a keyed hash over
those and the task id. It is checked without a look-up, by any later start of the same
orchestrator, and whoever holds it may hand the result in (an adopted outbox). Guessing
one online needs 2^55 tries.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

_MAC_BYTES: Final = 7
_TAG_BYTES: Final = 3
TOKEN_BYTES: Final = 16
#: Attempts are counted in two bytes; a task is failed long before.
MAX_ATTEMPT: Final = 65_535


class Claim(NamedTuple):
    """What a valid token says."""

    epoch: int
    n: int
    worker_tag: bytes


class TokenSigner:
    """Makes and checks the tokens of one orchestrator.

    Args:
        secret: 32 random bytes, kept in the journal.
        epoch: number of this start.
    """

    def __init__(self, secret: bytes, epoch: int) -> None:
        self._keyed = hashlib.blake2b(b"", key=secret, digest_size=_MAC_BYTES)
        self._epoch = (epoch & 0xFFFFFFFF).to_bytes(4, "big")

    def heading(self, worker_id: str, n: int) -> bytes:
        """Return the first 9 bytes of the tokens of attempt `n` at a worker."""
        return self._epoch + (n & MAX_ATTEMPT).to_bytes(2, "big") + worker_tag(worker_id)

    def token(self, heading: bytes, task_id: str) -> bytes:
        """Return the token for a task under a `heading`."""
        keyed = self._keyed.copy()
        keyed.update(heading + task_id.encode())
        return heading + keyed.digest()

    def check(self, token: bytes, task_id: str) -> Claim | None:
        """Return what `token` claims for `task_id`, or None if it was never issued."""
        if len(token) != TOKEN_BYTES:
            return None
        heading = token[:-_MAC_BYTES]
        if self.token(heading, task_id) != token:
            return None
        return Claim(
            int.from_bytes(heading[:4], "big"), int.from_bytes(heading[4:6], "big"), heading[6:9]
        )


def worker_tag(worker_id: str) -> bytes:
    """Return three bytes that stand for a worker id in tokens."""
    return hashlib.blake2b(worker_id.encode(), digest_size=_TAG_BYTES).digest()
