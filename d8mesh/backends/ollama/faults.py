"""What Ollama's refusals mean: busy, no room, never to be answered, or a failure.

Its statuses do not say it: a full machine answers 500 as well as 503, and what a client did wrong
may be a 500 too. Its words do.
"""

from __future__ import annotations

import json
import re
from typing import Final

from d8mesh.backends.streaming import BUSY, RefusedAnswer, shown
from d8mesh.errors import (
    BackendBusyError,
    BackendError,
    BackendMemoryError,
    BackendMissingError,
    D8Error,
    InvalidTaskError,
)

#: What it is called in what people read.
SERVICE: Final = "Ollama"
_BUSY_WORDS: Final = re.compile(
    r"llm busy|no slots available|maximum pending requests|server busy", re.IGNORECASE
)
#: The model does not fit into the machine's memory beside what is there.
_MEMORY_WORDS: Final = re.compile(
    r"requires more system memory|out of memory|cudaMalloc failed|unable to allocate|"
    r"insufficient memory",
    re.IGNORECASE,
)
#: The same request fails everywhere.
_WRONG_WORDS: Final = re.compile(
    r"does not support (?:chat|generat|complet|insert|think|tool|embed|vision|image)|"
    r"illegal base64|invalid (?:input type|format|image|option)|must be of type|"
    r"valid JSON Schema|missing unit in duration|top_logprobs must|required for image input",
    re.IGNORECASE,
)
#: It is longer than the context, and must not be cut.
_TOO_LONG_WORDS: Final = re.compile(
    r"exceeds? the (?:available |maximum )?context|exceed_context_size|prompt (?:is )?too long",
    re.IGNORECASE,
)
#: There is no such model anywhere.
_NO_MODEL_WORDS: Final = re.compile(r"manifest: file does not exist|invalid model name")


def refused(refusal: RefusedAnswer) -> D8Error:
    """Return the error for an answer with another status than 200."""
    if refusal.status in BUSY:
        return BackendBusyError(f"{SERVICE} is busy ({refusal.reason})")
    error = failed(refusal.reason)
    if type(error) is BackendError and refusal.status == 404 and _is_said(refusal.body):
        return BackendMissingError(f"{SERVICE} has no such model ({refusal.reason})")
    if type(error) is BackendError and refusal.status == 400 and _is_said(refusal.body):
        return InvalidTaskError(f"{SERVICE} refuses this ({refusal.reason})")
    return error


def is_not_found(error: D8Error) -> bool:
    """Return whether the model, or the path, was not found."""
    return error.details.get("status") == 404


def _is_said(body: bytes) -> bool:
    """Return whether it is Ollama that refuses, and not something on the way to it."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and isinstance(answer.get("error"), str)


def failed(text: str) -> D8Error:
    """Return the error for what Ollama says of its failure, before an answer or inside of it."""
    reason = shown(text)
    if _BUSY_WORDS.search(reason):
        return BackendBusyError(f"{SERVICE} is busy ({reason})")
    if _MEMORY_WORDS.search(reason):
        return BackendMemoryError(f"{SERVICE} has no room for the model ({reason})")
    if _TOO_LONG_WORDS.search(reason):
        return InvalidTaskError(
            f"longer than the context of the model, and truncate is false ({reason}): let it be "
            "cut, say less, or set num_ctx of the model in D8_LOAD_OPTIONS"
        )
    if _NO_MODEL_WORDS.search(reason):
        return InvalidTaskError(f"model: {SERVICE} finds no such model ({reason})")
    if _WRONG_WORDS.search(reason):
        return InvalidTaskError(f"{SERVICE} refuses this ({reason})")
    return BackendError(f"{SERVICE} failed ({reason})")
