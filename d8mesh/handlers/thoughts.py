"""What surrounds a model's answer: its thoughts before it, a Markdown fence around it."""

from __future__ import annotations

import re
from typing import Final

#: What models call it; one that is made to think begins in the middle, without the first tag.
_TAG: Final = r"(?:think|thinking|thought|thoughts|reasoning)"
_OPENED: Final = re.compile(rf"\s*<({_TAG})>.*?(?:</\1>\s*|\Z)", re.DOTALL | re.IGNORECASE)
#: Not inside quotes: code may speak of the tag.
_CLOSING: Final = re.compile(rf"(?<!['\"`\\])</({_TAG})>(?!['\"`\\])\s*", re.IGNORECASE)
_FENCE: Final = re.compile(r"(`{3,}|~{3,})[^`\r\n]*\r?\n")


def without_thoughts(text: str) -> str:
    """Return `text` without what a reasoning model thought before it answered.

    Thoughts are ``<think>…</think>`` at the beginning, or all before a ``</think>`` that none
    opened; thoughts that never end leave nothing.
    """
    start = 0
    while (thoughts := _OPENED.match(text, start)) is not None:
        start = thoughts.end()
    if start:
        return text[start:]
    closing = _CLOSING.search(text)
    if closing is None:
        return text
    before = text[: closing.start()]
    is_opened = f"<{closing[1].lower()}>" in before.lower()
    if is_opened or _FENCE.match(before.lstrip()):  # the answer has begun: it speaks of the tag
        return text
    return text[closing.end() :]


def unfenced(text: str) -> str:
    """Return the code in `text` if all of it is one Markdown fence; thoughts go in any case."""
    answer = without_thoughts(text)
    inner = answer.strip()
    opening = _FENCE.match(inner)
    if opening is None:
        return answer
    fence = opening[1]
    if not inner.endswith(fence) or inner.count(fence) != 2:
        return answer
    code = inner[opening.end() : -len(fence)]
    return code.removesuffix("\n").removesuffix("\r")
