"""What models have read and written is counted for the access token that was shown."""

from __future__ import annotations

from typing import Protocol


class SpendsTokens(Protocol):
    """Counts what models have read and written for access tokens."""

    def __call__(self, token_id: str, /, *, input_tokens: int, output_tokens: int) -> None:
        """Count it for this token."""


def spend_nothing(token_id: str, /, *, input_tokens: int, output_tokens: int) -> None:
    """Count nothing: where there are no access tokens."""
