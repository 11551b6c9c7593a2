"""What a handler's value, or its exception, becomes: a kind and a result object in msgpack."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from d8mesh.core.protocol.json_model import as_json, check_json, error_as_text, packed_json, scalar
from d8mesh.core.protocol.messages import FAILED, MAX_PAYLOAD_BYTES, REFUSED, SUCCEEDED
from d8mesh.errors import BackendError, D8Error, InvalidTaskError, PayloadTooLargeError
from d8mesh.handlers.retrying import AttemptEnd, Reject
from d8mesh.handlers.tracebacks import (
    MAX_ERROR_CHARS,
    error_text,
    is_all_ours,
    message_of,
    name_of,
    traceback_text,
)

#: The error of a handler that returns a failure and names none.
FAILED_UNSAID: Final = "the handler returned a failure without saying why"
_encode: Final = msgspec.msgpack.Encoder().encode
#: Values of these types need no look inside.
PLAIN: Final = frozenset({str, bool, type(None)})


def of_value(value: object, worker_id: str, duration_s: float) -> AttemptEnd:
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
            result["error"] = error_as_text(result.get("error")) or FAILED_UNSAID
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


def of_exception(error: BaseException, worker_id: str, duration_s: float) -> AttemptEnd:
    """Return how an attempt ends whose handler raised.

    What d8mesh's own handlers say in words, and a `Reject`, carries no traceback and no class.
    """
    is_refusal, is_said = isinstance(error, InvalidTaskError), _is_said(error)
    text = message_of(error) if is_refusal or is_said else error_text(error)
    return of_error(
        text,
        worker_id,
        duration_s,
        is_final=is_refusal or isinstance(error, PayloadTooLargeError),
        traceback="" if is_said else traceback_text(error),
        code=error.code if isinstance(error, D8Error) and is_all_ours(error) else "",
    )


def of_untellable(error: BaseException, worker_id: str, duration_s: float) -> AttemptEnd:
    """Return how an attempt ends whose handler raised what raises when it is looked at."""
    text = f"{name_of(error)}: nothing more can be told of it, for it raises when it is looked at"
    return of_error(text, worker_id, duration_s)


def _is_said(error: BaseException) -> bool:
    """Return whether the text tells all: there is no fault in a handler to look for."""
    if isinstance(error, Reject):
        return True
    return isinstance(error, (InvalidTaskError, BackendError)) and is_all_ours(error)


def of_error(
    text: str,
    worker_id: str,
    duration_s: float,
    *,
    is_final: bool = False,
    traceback: str = "",
    code: str = "",
) -> AttemptEnd:
    """Return how a failed attempt ends; `is_final`: trying again would not help.

    Args:
        code: of an error of ours, by which its submitter may tell it from others.
    """
    result = {
        "success": False,
        "error": text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode("utf-8"),
        "worker_id": worker_id,
        "duration_s": duration_s,
    }
    if code:
        result["code"] = code
    if traceback:
        result["traceback"] = traceback
    return (REFUSED if is_final else FAILED), _encode(result)


def chunk_of(value: object) -> bytes:
    """Return partial output as it travels.

    Raises:
        InvalidTaskError: it is not of JSON's model; the message names the path.
        PayloadTooLargeError: it is larger than `MAX_PAYLOAD_BYTES`.
    """
    payload = packed_json(value, "the chunk")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"a chunk of {len(payload)} bytes: emit at most {MAX_PAYLOAD_BYTES} at once, in "
            "several parts or as a path or URL"
        )
    return payload


def takes_context(handler: Callable[..., object]) -> bool:
    """Return whether a handler takes the context beside the data."""
    try:
        inspect.signature(handler).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
