"""JSON's model: what data and results may hold. Checked where a value enters the mesh."""

from __future__ import annotations

from math import isfinite
from typing import Final

import msgspec

from d8mesh.errors import InvalidTaskError

#: Nesting deeper than this is refused: some reader would overflow its stack.
MAX_DEPTH: Final = 100
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1

_PLAIN: Final = frozenset({str, bool, type(None)})


def check_json(value: object, path: str, depth: int = 0) -> None:
    """Make sure that `value` is of JSON's model.

    Raises:
        InvalidTaskError: something in it is not; the message names the path.
    """
    if type(value) in _PLAIN:
        return
    if depth > MAX_DEPTH:
        raise InvalidTaskError(f"{path[:200]}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                seen = type(key).__name__
                raise InvalidTaskError(f"{path}: saw a key of type {seen}, expected texts")
            kind = type(item)
            if not (kind in _PLAIN or (kind is float and isfinite(item))):
                check_json(item, f"{path}.{key}" if depth < 3 else path, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            kind = type(item)
            if not (kind in _PLAIN or (kind is float and isfinite(item))):
                check_json(item, path, depth + 1)
    else:
        _check_single(value, path)


def error_as_text(error: object) -> str:
    """Return what a failure names as its error as text; empty if it names none."""
    if error is None or isinstance(error, str):
        return error or ""
    try:
        return msgspec.json.encode(error, enc_hook=str).decode("utf-8")
    except (TypeError, ValueError, OverflowError, RecursionError):
        return f"{type(error).__name__} that cannot be shown"


def _check_single(value: object, path: str) -> None:
    if isinstance(value, int):
        if not MIN_INT <= value <= MAX_INT:
            raise InvalidTaskError(f"{path}: an integer beyond 64 bits")
    elif isinstance(value, float):
        if not isfinite(value):
            raise InvalidTaskError(f"{path}: {value} is not a number that JSON has")
    elif not isinstance(value, str):
        seen = type(value).__name__
        raise InvalidTaskError(
            f"{path}: saw {seen}, expected an object, array, text, number, boolean or null"
        )
