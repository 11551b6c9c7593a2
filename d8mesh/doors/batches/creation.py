"""``POST /v1/batches``: what is wished for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.doors.batches.lines import ENDPOINTS
from d8mesh.doors.batches.uploads import LEAST_STAY_S, MOST_STAY_S
from d8mesh.errors import InvalidTaskError
from d8mesh.http.strict import parse_lenient_json

#: Below what people wait for at a screen, and below what is submitted without a wish.
BATCH_PRIORITY: Final = 3
MAX_METADATA: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_CHARS: Final = 512
#: Longest time that a batch may take: a fortnight.
MAX_WINDOW_S: Final = 14 * 86_400
_WINDOW_PATTERN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_WINDOW_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class WantedBatch:
    """A batch that somebody wishes for."""

    input_file_id: str
    endpoint: str
    window: str
    window_s: int
    metadata: dict[str, str] | None
    priority: int
    output_stays_s: int


def wanted_batch(body: bytes) -> WantedBatch:
    """Return the batch that a body wishes for.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names it.
    """
    wished = parse_lenient_json(body or b"null")
    if not isinstance(wished, dict):
        raise InvalidTaskError("the body: expected an object")
    endpoint = _text(wished, "endpoint")
    if endpoint not in ENDPOINTS:
        raise InvalidTaskError(f"endpoint: expected one of {', '.join(ENDPOINTS)}")
    window = _text(wished, "completion_window")
    found = _WINDOW_PATTERN.fullmatch(window)
    window_s = int(found[1]) * _WINDOW_UNITS_S[found[2]] if found else 0
    if not 0 < window_s <= MAX_WINDOW_S:
        raise InvalidTaskError("completion_window: expected 24h, or another time up to 14d")
    metadata = _metadata(wished.get("metadata"))
    return WantedBatch(
        input_file_id=_text(wished, "input_file_id"),
        endpoint=endpoint,
        window=window,
        window_s=window_s,
        metadata=metadata,
        priority=_priority(metadata or {}),
        output_stays_s=_stays_s(wished.get("output_expires_after")),
    )


def _text(wished: Mapping[str, Any], name: str) -> str:
    value = wished.get(name)
    if value is None:
        raise InvalidTaskError(f"Missing field: {name}")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_METADATA_CHARS:
        raise InvalidTaskError(f"{name}: expected a text")
    return value


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise InvalidTaskError(f"metadata: expected an object of at most {MAX_METADATA} texts")
    for key, text in value.items():
        if not 0 < len(key) <= MAX_METADATA_KEY_CHARS:
            raise InvalidTaskError(
                f"metadata: expected keys of 1 to {MAX_METADATA_KEY_CHARS} characters"
            )
        if not isinstance(text, str) or len(text) > MAX_METADATA_CHARS:
            raise InvalidTaskError(
                f"metadata.{key}: expected a text of at most {MAX_METADATA_CHARS} characters"
            )
    return value


def _priority(metadata: Mapping[str, str]) -> int:
    text = metadata.get("priority")
    if text is None:
        return BATCH_PRIORITY
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:3]) <= 10:
        raise InvalidTaskError("metadata.priority: expected a number from 1 to 10, as a text")
    return int(text)


def _stays_s(value: object) -> int:
    if value is None:
        return MOST_STAY_S
    seconds = value.get("seconds") if isinstance(value, dict) else None
    if type(seconds) is not int or not LEAST_STAY_S <= seconds <= MOST_STAY_S:
        bounds = f"{LEAST_STAY_S} to {MOST_STAY_S}"
        raise InvalidTaskError(f"output_expires_after.seconds: expected seconds, {bounds}")
    if isinstance(value, dict) and value.get("anchor") != "created_at":
        raise InvalidTaskError("output_expires_after.anchor: expected created_at")
    return seconds
