"""What a handler's value, or its exception, becomes: a kind and a result object in msgpack."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from d8mesh.core.json_model import as_json, check_json, error_as_text, scalar
from d8mesh.core.messages import FAILED, MAX_PAYLOAD_BYTES, REFUSED, SUCCEEDED
from d8mesh.errors import InvalidTaskError

#: Characters of an error text that travel.
MAX_ERROR_CHARS: Final = 2000
#: The error of a handler that returns a failure and names none.
NO_REASON: Final = "the handler returned a failure without saying why"
_encode: Final = msgspec.msgpack.Encoder().encode
#: Values of these types need no look inside.
PLAIN: Final = frozenset({str, bool, type(None)})

Ending = tuple[int, bytes]


def of_value(value: object, worker_id: str, duration_s: float) -> Ending:
    """Return how an attempt ends whose handler returned `value`.

    An object with a boolean ``success`` is the result itself (a failure's ``error`` is filled
    in, and made text); anything else its ``output``.
    A value that is not of JSON's model, or too large, refuses the task for good.
    """
    result: dict[str, Any]
    is_plain = type(value) in PLAIN  # the hot path: no look inside, no slow type check
    if is_own := not is_plain and isinstance(value, Mapping) and _is_verdict(value.get("success")):
        result = {**value, "success": scalar(value["success"]), "worker_id": worker_id}
        result.setdefault("duration_s", duration_s)
        if not result["success"]:
            result["error"] = error_as_text(result.get("error")) or NO_REASON
            value = result
    else:
        result = {
            "success": True,
            "output": value,
            "worker_id": worker_id,
            "duration_s": duration_s,
        }
    try:
        try:
            if not is_plain:
                check_json(value, "the result")
            payload = _encode(result)
        except (InvalidTaskError, TypeError):  # not plain: converted, or refused with its path
            payload = _encode(_converted(value, result, is_own=is_own))
    except Exception as error:  # a value's own methods may raise whatever they like
        text = f"the handler's result cannot be sent: {error}"
        return of_error(text, worker_id, duration_s, is_final=True)
    if len(payload) > MAX_PAYLOAD_BYTES:
        text = f"result_too_large: {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}"
        return of_error(text, worker_id, duration_s, is_final=True)
    return (SUCCEEDED if result["success"] else FAILED), payload


def _converted(value: object, result: dict[str, Any], *, is_own: bool) -> object:
    """Return `result`, which is `value` or holds it as its output, in JSON's own types."""
    if is_own:
        return as_json(result, "the result")
    return {**result, "output": as_json(value, "the result")}


def _is_verdict(value: object) -> bool:
    """Return whether an object's ``success`` makes it a result: true or false, NumPy's too."""
    return type(value) is bool or (value is not None and type(scalar(value)) is bool)


def of_exception(error: BaseException, worker_id: str, duration_s: float) -> Ending:
    """Return how an attempt ends whose handler raised."""
    is_final = isinstance(error, InvalidTaskError)
    try:
        text = str(error)
    except Exception:  # an exception's own __str__ may be broken
        text = ""
    if not is_final:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return of_error(text, worker_id, duration_s, is_final=is_final)


def of_error(text: str, worker_id: str, duration_s: float, *, is_final: bool = False) -> Ending:
    """Return how a failed attempt ends; `is_final`: trying again would not help."""
    result = {
        "success": False,
        "error": text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode("utf-8"),
        "worker_id": worker_id,
        "duration_s": duration_s,
    }
    return (REFUSED if is_final else FAILED), _encode(result)


def takes_context(handler: Callable[..., object]) -> bool:
    """Return whether a handler takes the context beside the data."""
    try:
        inspect.signature(handler).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
