"""JSON's model: what data and results may hold. Checked where a value enters the mesh.

What only looks different is converted: subclasses of text and numbers, the scalars of NumPy and
the like, enums of text or numbers, tuples, mappings that are no dict. What JSON has no form for
is refused with its path: bytes, sets, NaN, dates, decimals, dataclasses.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from enum import Enum
from math import isfinite
from typing import Final

import msgspec

from d8mesh.errors import InvalidTaskError

#: Nesting deeper than this is refused: some reader would overflow its stack.
MAX_DEPTH: Final = 100
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1

_PLAIN: Final = frozenset({str, bool, type(None)})
_encode: Final = msgspec.msgpack.Encoder().encode
#: What helps with what people hand over most.
_HINTS: Final = {
    "ndarray": "; .tolist() makes a list of it",
    "Tensor": "; .tolist() makes a list of it",
    "Decimal": "; float() or str() makes it plain",
    "set": "; list() or sorted() makes a list of it",
    "frozenset": "; list() or sorted() makes a list of it",
    "bytes": "; as text it can be sent, base64 for one; larger things go as files",
    "datetime": "; .isoformat() makes a text of it",
    "date": "; .isoformat() makes a text of it",
}


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


def packed_json(value: object, path: str) -> bytes:
    """Return `value` as msgpack, converted to JSON's model where it must be.

    Raises:
        InvalidTaskError: something in it is not of JSON's model; the message names the path.
    """
    try:
        check_json(value, path)
        return _encode(value)
    except (InvalidTaskError, TypeError):  # plain values, nearly all, never come here
        value = as_json(value, path)
    except (UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise InvalidTaskError(f"{path}: this cannot be sent: {error}") from error
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise InvalidTaskError(f"{path}: this cannot be sent: {error}") from error


def as_json(value: object, path: str, depth: int = 0) -> object:
    """Return `value` in JSON's own types: dict, list, str, int, float, bool, None.

    Raises:
        InvalidTaskError: something in it is not of JSON's model; the message names the path.
    """
    if depth > MAX_DEPTH:
        raise InvalidTaskError(f"{path[:200]}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return _object(value, path, depth)
    if isinstance(value, (list, tuple)):
        return [as_json(item, path, depth + 1) for item in value]
    value = scalar(value)
    if type(value) not in _PLAIN:
        _check_single(value, path)
    return value


def _object(value: Mapping[object, object], path: str, depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for given, item in value.items():
        key = _key(given)
        if key is None:
            seen = type(given).__name__
            raise InvalidTaskError(f"{path}: saw a key of type {seen}, expected texts")
        if key in found:
            raise InvalidTaskError(f"{path}: the key {key[:80]!r} stands there twice")
        found[key] = as_json(item, f"{path}.{key}" if depth < 3 else path, depth + 1)
    return found


def _key(given: object) -> str | None:
    """Return a key as text; None if it is none. Members of enums are named by their value."""
    key = scalar(given)
    if isinstance(given, Enum) and type(key) is int:
        return str(key)
    return key if isinstance(key, str) else None


def scalar(value: object) -> object:
    """Return a scalar in the type that JSON's model has for it, or as it is if there is none."""
    if type(value) in _PLAIN or type(value) in (int, float):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass too: its text, whatever it says of itself
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():  # NumPy's scalars, and their like
        inner = item()
        if type(inner) is not type(value):
            return scalar(inner)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return float(value)
    return value


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
        hint = _HINTS.get(seen, "")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hint = "; dataclasses.asdict() makes a dict of it"
        raise InvalidTaskError(
            f"{path}: saw {seen}, expected an object, array, text, number, boolean or null{hint}"
        )
