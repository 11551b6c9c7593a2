"""JSON as it is taken in: strictly UTF-8, no key twice, only numbers that 64 bits hold.

Where other programs' clients ask, a key may stand twice, and half a surrogate pair is no fault.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

from d8mesh.core.protocol.json_model import MAX_INT, MIN_INT
from d8mesh.errors import InvalidTaskError

#: Keys of all objects of one body: bounds what a body costs in memory beside its bytes.
MAX_KEYS: Final = 500_000
#: Digits of an integer that are looked at: 64 bits have 20, and a sign.
_MAX_INT_CHARS: Final = 21
#: Characters of a number that is refused that are told.
MAX_SHOWN: Final = 24
_SURROGATE: Final = re.compile(rb"\\u[dD][89abcdefABCDEF]")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        InvalidTaskError: it is not UTF-8 or not JSON; a key stands twice in an object; a
            number is not finite or beyond 64 bits; a text has half a surrogate pair; it is
            nested too deeply or has more than MAX_KEYS keys.
    """
    value = _parsed(body, _object_hook(_once))
    if _has_half_a_pair(body, value):
        raise InvalidTaskError("the body has a text with half a surrogate pair")
    return value


def parse_lenient_json(body: bytes) -> Any:
    """Return the value of a JSON text: of a key that stands twice the last one counts, and half
    a surrogate pair becomes U+FFFD.

    Raises:
        InvalidTaskError: for all else that `parse_json` refuses.
    """
    value = _parsed(body, _object_hook(dict))
    if _has_half_a_pair(body, value):
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        value = json.loads(text.decode("utf-16", "replace"))
    return value


_Pairs: TypeAlias = list[tuple[str, Any]]


def _parsed(body: bytes, hook: Callable[[_Pairs], dict[str, Any]]) -> Any:
    if body.startswith(codecs.BOM_UTF8):
        raise InvalidTaskError(
            "the body begins with a byte order mark (EF BB BF): expected JSON without one"
        )
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=hook,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise InvalidTaskError(f"the body is not UTF-8, at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidTaskError(f"the body is not JSON: {error.msg} at {error.pos}") from error
    except RecursionError as error:
        raise InvalidTaskError("the body is nested too deeply") from error


def _has_half_a_pair(body: bytes, value: object) -> bool:
    if _SURROGATE.search(body):
        try:
            msgspec.msgpack.encode(value)
        except UnicodeEncodeError:
            return True
        except RecursionError as error:
            raise InvalidTaskError("the body is nested too deeply") from error
    return False


def _object_hook(build: Callable[[_Pairs], dict[str, Any]]) -> Callable[[_Pairs], dict[str, Any]]:
    """Return what makes the objects of one body, with no more keys than are allowed."""
    left = MAX_KEYS

    def hook(pairs: _Pairs) -> dict[str, Any]:
        nonlocal left
        left -= len(pairs)
        if left < 0:
            raise InvalidTaskError(f"the body has more than {MAX_KEYS} keys")
        return build(pairs)

    return hook


def _once(pairs: _Pairs) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidTaskError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) <= _MAX_INT_CHARS and MIN_INT <= (value := int(text)) <= MAX_INT:
        return value
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    raise InvalidTaskError(f"the integer {shown} is beyond 64 bits")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidTaskError(f"the number {text[:24]} is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidTaskError(f"{name} is not a number that JSON has")
