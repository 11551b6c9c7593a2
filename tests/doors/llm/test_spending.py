"""Where there are no access tokens, nothing is counted."""

from __future__ import annotations

from d8mesh.doors.llm.spending import SpendsTokens, spend_nothing


def test_nothing_is_counted_and_nothing_fails() -> None:
    spend: SpendsTokens = spend_nothing
    spend("x", input_tokens=1, output_tokens=2)
