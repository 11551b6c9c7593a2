"""Between the bodies of polling workers and those of the mesh.

What a polling worker is handed has the keys of its data flattened; what it reports is
brought into the form that clients read.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from d8mesh.core.protocol.chat import MODEL_TYPES
from d8mesh.core.protocol.json_model import error_as_text
from d8mesh.core.protocol.messages import MAX_PAYLOAD_BYTES

#: Where polling workers put a text that belongs into ``output``.
OUTPUT_KEYS: Final = ("result", "response")

_REPORTED: Final = re.compile(r'"(task_id|worker_id)"\s*:\s*"([^"\\]{1,128})"')
_decoder: Final = msgspec.msgpack.Decoder()


def task_body(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task as polling workers read it; the four named keys win over those of data."""
    data = decoded(task["data"])
    flat = dict(data) if isinstance(data, dict) else {}
    flat.setdefault("attempt", task.get("attempt"))
    return flat | {
        "task_id": task["task_id"],
        "type": task["type"],
        "data": data,
        "priority": task["priority"],
    }


def status_body(body: dict[str, Any], *, has_tracebacks: bool = False) -> dict[str, Any]:
    """Return a status body, decoded, without the tracebacks, which tell of a worker's files."""
    for name in ("result", "data"):
        payload = body.get(name)
        if isinstance(payload, bytes):
            body[name] = decoded(payload)
    if not has_tracebacks:
        failed = list(body.get("history") or ())
        if body.get("status") != "completed":  # of one that completed it is the user's own key
            failed.append(body.get("result"))
        for told in failed:
            if isinstance(told, dict):
                told.pop("traceback", None)
    return body


def decoded(payload: bytes) -> Any:
    """Return what a payload holds; what some stranger stored that is no msgpack is told."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"success": False, "error": "what is stored cannot be read"}


def lacks_output(result: object) -> bool:
    """Return whether a reported result may have its text in another place."""
    return (
        isinstance(result, dict)
        and result.get("output") is None
        and any(result.get(key) is not None for key in OUTPUT_KEYS)
    )


def reported(result: object, *, worker_id: str, task_type: str) -> tuple[bool, bytes]:
    """Return whether a reported result is a success, and its payload in the clients' form.

    What is no object is a failure; `task_type` matters if `lacks_output`.
    """
    if not isinstance(result, dict):
        result = {"success": False, "error": "the worker reported no object as its result"}
    is_success = result.get("success") is True
    body = result | {"success": is_success}
    body.setdefault("worker_id", worker_id)
    if lacks_output(body) and task_type in MODEL_TYPES:
        body["output"] = next(body[key] for key in OUTPUT_KEYS if body.get(key) is not None)
    if not is_success:
        body["error"] = error_as_text(body.get("error")) or _why_failed(result)
    payload = msgspec.msgpack.encode(body)
    if len(payload) > MAX_PAYLOAD_BYTES:
        too_large = f"result_too_large: {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}"
        body = {"success": False, "error": too_large, "worker_id": worker_id}
        return False, msgspec.msgpack.encode(body)
    return is_success, payload


def named_in(body: bytes) -> dict[str, str]:
    """Return the task and the worker that a report names, which itself cannot be taken.

    As far as they can be made out: what is no JSON at all is searched for the two names.
    """
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = dict(_REPORTED.findall(text))
    if not isinstance(found, dict):
        return {}
    names = {name: found.get(name) for name in ("task_id", "worker_id")}
    return {
        name: value.encode("utf-8", "replace").decode("utf-8")
        for name, value in names.items()
        if isinstance(value, str)
    }


def _why_failed(result: dict[str, Any]) -> str:
    """Return what to say of a report that is no success and names no error."""
    if "success" not in result:
        return "the worker's result has no success: expected true or false"
    success = result["success"]
    if isinstance(success, bool):
        return "the worker reported a failure without saying why"
    shown = error_as_text(success)[:60] or "null"
    return f"the worker's result has the success {shown!r}: expected true or false"
