"""What Ollama tells of a model, in bounds: the few facts of its lists, and all of ``/api/show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.backends.streaming import clean_object, shown
from d8mesh.core.protocol.chat import JsonObject

#: Of a digest, a date, a version, a capability.
MAX_TOLD_CHARS: Final = 128
#: Fields of a model's details, and names in a list of them.
MAX_DETAILS_TOLD: Final = 16
#: Characters of one text of a description: a licence is some 10 KB, a template less.
MAX_TEXT_CHARS: Final = 64 * 1024
#: Fields of a description, and of its figures: a large model has some hundred.
MAX_DESCRIBED_FIELDS: Final = 512
#: Of a list in it; a tokenizer's are told as null, as Ollama does it.
MAX_DESCRIBED_ITEMS: Final = 64
#: What is not told on: megabytes that nobody who uses the model needs.
_LEFT_OUT: Final = frozenset({"tensors"})


def told_text(value: object) -> str:
    """Return a short text in one line; "" if it is none."""
    return shown(value)[:MAX_TOLD_CHARS] if isinstance(value, str) and value else ""


def details_in(row: Mapping[str, Any]) -> JsonObject:
    """Return the facts that a list tells of a model: family, format, sizes."""
    details = row.get("details")
    if not isinstance(details, Mapping):
        return {}
    found: dict[str, object] = {}
    for name, value in list(details.items())[:MAX_DETAILS_TOLD]:
        if isinstance(value, str):
            found[name[:MAX_TOLD_CHARS]] = told_text(value)
        elif isinstance(value, list):
            found[name[:MAX_TOLD_CHARS]] = [told_text(each) for each in value[:MAX_DETAILS_TOLD]]
        elif isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
            found[name[:MAX_TOLD_CHARS]] = value
    return found


def description_in(answer: Mapping[str, Any]) -> JsonObject:
    """Return what ``/api/show`` tells, without tokens and tensors, each text bounded."""
    kept = {name: _bounded(value) for name, value in answer.items() if name not in _LEFT_OUT}
    return clean_object(dict(list(kept.items())[:MAX_DESCRIBED_FIELDS]))


def _bounded(value: object) -> object:
    if isinstance(value, str):
        return value[:MAX_TEXT_CHARS]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**63 else float(value)
    if isinstance(value, list):
        is_short = len(value) <= MAX_DESCRIBED_ITEMS
        return [_bounded(each) for each in value] if is_short else None
    if isinstance(value, Mapping):
        items = list(value.items())[:MAX_DESCRIBED_FIELDS]
        return {str(name)[:MAX_TEXT_CHARS]: _bounded(each) for name, each in items}
    return value
