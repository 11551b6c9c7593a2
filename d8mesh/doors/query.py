"""What stands behind the question mark of an address; what is wrong there is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from d8mesh.errors import InvalidTaskError

_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False, "": False}


def seconds(
    query: Mapping[str, str], name: str, *, default: float, most: float, is_cut: bool = False
) -> float:
    """Return a duration; if `is_cut`, a larger one than `most` counts as that."""
    text = query.get(name)
    if text is None:
        return default
    try:
        is_plain = len(text) <= 32 and text.isascii() and "_" not in text  # Python's, not HTTP's
        value = float(text) if is_plain else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= (math.inf if is_cut else most):  # also false for NaN
        raise InvalidTaskError(f"{name}: saw {text[:32]!r}, expected seconds, 0 to {most:g}")
    return min(value, most)


def integer(query: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    """Return a number from 1 to `most`."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise InvalidTaskError(f"{name}: saw {text[:32]!r}, expected a number, 1 to {most}")
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    """Return a yes or no; a missing one is a no."""
    text = query.get(name, "").lower()
    if text not in _FLAGS:
        raise InvalidTaskError(f"{name}: saw {text[:32]!r}, expected 1 or 0")
    return _FLAGS[text]
