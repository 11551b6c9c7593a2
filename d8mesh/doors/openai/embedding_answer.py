"""Answers to ``/v1/embeddings`` in OpenAI's form. Pure."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels


def embedding_body(
    asked: AskedOfModels, answers: Sequence[LlmAnswer], created: int
) -> dict[str, Any]:
    """Return a vector for each input, in their order; `created` has no place in it."""
    vectors = [row for each in answers if each.embeddings for row in each.embeddings.vectors]
    tokens = sum(each.embeddings.usage.total for each in answers if each.embeddings)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": i,
                "embedding": _base64(row) if asked.is_base64 else list(row),
            }
            for i, row in enumerate(vectors)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(row: Sequence[float]) -> str:
    """Return a vector as its float32, the lowest byte of each first, in base64."""
    numbers = array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
