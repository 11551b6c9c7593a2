"""Answers in Ollama's form: objects with exactly its fields, in its order, with its omissions.

Source: Ollama, ``api/types.go``: figures that are 0 are left out, and so is what is empty, but for
``content`` and ``response``, which are always there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from d8mesh.core.protocol.chat import (
    Completion,
    Embeddings,
    Ending,
    FinishReason,
    JsonObject,
    Origin,
    Piece,
    Timing,
)
from d8mesh.doors.ollama.errors import error_text
from d8mesh.errors import D8Error
from d8mesh.http.events import json_line

NDJSON_TYPE: Final = "application/x-ndjson"
LOADED: Final = "load"
UNLOADED: Final = "unload"
_NS: Final = 1_000_000_000
#: Of an answer before `done`: what stands behind the text.
_REMOTE_FIELDS: Final = ("remote_model", "remote_host")


def created_at(at: datetime | None = None) -> str:
    """Return a time as answers tell it."""
    told = (at or datetime.now(UTC)).isoformat(timespec="microseconds")
    return told.replace("+00:00", "Z")


def line_of(body: Mapping[str, object]) -> bytes:
    """Return a line of a stream."""
    return json_line(body) + b"\n"


def text_body(model: str, completion: Completion, *, is_chat: bool, is_raw: bool) -> dict[str, Any]:
    """Return the one object of an answer that is not streamed; `model` as it was spelled."""
    piece = Piece(
        completion.text,
        completion.thinking,
        completion.tool_calls,
        completion.logprobs,
        completion.ending,
        completion.extra,
    )
    return piece_body(model, piece, is_chat=is_chat, is_raw=is_raw)


def piece_body(model: str, piece: Piece, *, is_chat: bool, is_raw: bool) -> dict[str, Any]:
    """Return the object that tells of a piece; one with an ending is the last."""
    extra = dict(piece.extra)
    context, of_message = extra.pop("context", None), extra.pop("message", None)
    body: dict[str, Any] = {"model": model}
    body |= {name: extra.pop(name) for name in _REMOTE_FIELDS if name in extra}
    body["created_at"] = created_at()
    calls = [_call(call, n) for n, call in enumerate(piece.tool_calls)]
    said: dict[str, Any] = {"thinking": piece.thinking} if piece.thinking else {}
    if is_chat:
        said |= {"tool_calls": calls} if calls else {}
        more = of_message if isinstance(of_message, dict) else {}
        body["message"] = {"role": "assistant", "content": piece.text, **said, **more}
    else:
        body |= {"response": piece.text, **said}
    body["done"] = piece.ending is not None
    if piece.ending is not None:
        body["done_reason"] = _reason(piece.ending)
        if context and not is_chat and not is_raw:
            body["context"] = context
    if calls and not is_chat:
        body["tool_calls"] = calls
    if piece.logprobs:
        body["logprobs"] = list(piece.logprobs)
    if piece.ending is not None:
        body |= _figures(piece.ending)
    return body | {name: value for name, value in extra.items() if name not in body}


def loaded_body(model: str, *, is_chat: bool, is_unload: bool) -> dict[str, Any]:
    """Return the answer to a request that asks nothing: the model is loaded, or let go of."""
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    )
    reason = UNLOADED if is_unload else LOADED
    return {"model": model, "created_at": created_at(), **said, "done": True, "done_reason": reason}


def vectors_body(model: str, made: Sequence[Embeddings]) -> dict[str, Any]:
    """Return the answer to an embed; `made` of each of its tasks, in order."""
    timing = Timing(
        load_s=max((each.timing.load_s for each in made), default=0.0),
        total_s=max((each.timing.total_s for each in made), default=0.0),
    )
    body: dict[str, Any] = {
        "model": model,
        "embeddings": [row for each in made for row in each.vectors],
    }
    told = {
        "total_duration": _ns(timing.total_s),
        "load_duration": _ns(timing.load_s),
        "prompt_eval_count": sum(each.usage.prompt_tokens for each in made),
    }
    return body | {name: value for name, value in told.items() if value}


def vector_body(made: Sequence[Embeddings]) -> dict[str, Any]:
    """Return the answer to an old embeddings: of one text, or of none."""
    rows = [row for each in made for row in each.vectors]
    return {"embedding": rows[0] if rows else []}


class TextLines:
    """A `StreamForm`: NDJSON, one object a line, and never a blank one.

    Args:
        model: as it was spelled; each line repeats it.
    """

    media_type = NDJSON_TYPE
    comment = b""

    def __init__(self, model: str, *, is_chat: bool, is_raw: bool) -> None:
        self._model, self._is_chat, self._is_raw = model, is_chat, is_raw
        self._calls = 0

    def begin(self, task_ids: list[str]) -> bytes:
        """Return nothing: the first line is the first piece."""
        return b""

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return the line of a piece; nothing for one that says nothing."""
        if not (piece.text or piece.thinking or piece.tool_calls or piece.logprobs or piece.ending):
            return b""
        body = piece_body(self._model, piece, is_chat=self._is_chat, is_raw=self._is_raw)
        if piece.tool_calls:
            self._number(body["message"] if self._is_chat else body)
        return line_of(body)

    def end(self) -> bytes:
        """Return nothing: the last piece said that it is the last."""
        return b""

    def broken(self, error: D8Error) -> bytes:
        """Return the line that says that no end will come."""
        return line_of({"error": error_text(error)})

    def _number(self, said: dict[str, Any]) -> None:
        for call in said["tool_calls"]:
            call["function"]["index"] = self._calls
            self._calls += 1


def _call(call: JsonObject, n: int) -> dict[str, Any]:
    """Return a call of a tool: id, then index, name and arguments, which are an object."""
    function = call.get("function")
    told = dict(function) if isinstance(function, Mapping) else {}
    index, name, arguments = told.pop("index", n), told.pop("name", ""), told.pop("arguments", {})
    own_id = call.get("id") or f"call_{secrets.token_hex(4)}"
    ordered = {"index": index, "name": name, "arguments": arguments, **told}
    return {"id": own_id, "function": ordered}


def _reason(ending: Ending) -> str:
    """Return why it ended: a call of a tool is no reason of its own here."""
    return "length" if ending.finish_reason is FinishReason.LENGTH else "stop"


def _figures(ending: Ending) -> dict[str, int]:
    timing, usage = ending.timing, ending.usage
    told = {
        "total_duration": _ns(timing.total_s),
        "load_duration": _ns(timing.load_s),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_cached_count": usage.cached_tokens,
        "prompt_eval_duration": _ns(timing.prompt_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _ns(timing.output_s),
    }
    return {name: value for name, value in told.items() if value}


def _ns(seconds: float) -> int:
    return round(seconds * _NS)
