"""A message that grows, as Anthropic's named events."""

from __future__ import annotations

import json
from typing import Any, Final

from d8mesh.core.protocol.chat import Ending, JsonObject, Origin, Piece
from d8mesh.doors.anthropic.message_answer import (
    SIGNATURE,
    blank_message,
    ending_fields,
    tool_use,
    usage_fields,
)
from d8mesh.doors.anthropic.message_request import AskedMessage
from d8mesh.doors.anthropic.problems import error_body
from d8mesh.errors import D8Error
from d8mesh.http.events import SSE, Event

#: What a block begins with, by its type.
_BLANK_BLOCKS: Final[dict[str, dict[str, Any]]] = {
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
    "text": {"type": "text", "text": ""},
}


class MessageForm:
    """Writes one message (`StreamForm`): its blocks one after the other, each opened and closed."""

    media_type = SSE.media_type
    comment = b": still here\n\n"

    def __init__(self, asked: AskedMessage, request_id: str) -> None:
        self._asked, self._request_id = asked, request_id
        self._task_id = ""
        self._index = -1  #: of the block that is written, or was last
        self._open = ""  #: its type, while it is open
        self._calls = 0
        self._ending, self._extra = Ending(), {}  # type: tuple[Ending, JsonObject]

    def begin(self, task_ids: list[str]) -> bytes:
        """Return the head of the message; what the question took is told at the end."""
        (self._task_id,) = task_ids
        message = blank_message(self._task_id, self._asked.task.model)
        return _event("message_start", message=message) + _event("ping")

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return what was said, as deltas of its blocks."""
        written: list[bytes] = []
        if piece.thinking and self._asked.shows_thinking:
            written += self._opened("thinking")
            written.append(self._delta("thinking_delta", thinking=piece.thinking))
        if piece.text:
            written += self._opened("text")
            written.append(self._delta("text_delta", text=piece.text))
        for call in piece.tool_calls:
            written += self._called(call)
        if piece.ending is not None:
            self._ending, self._extra = piece.ending, piece.extra
        return b"".join(written)

    def end(self) -> bytes:
        """Return why it ended and what it took, all counts from its beginning."""
        has_calls = self._calls > 0
        why = ending_fields(self._ending, self._extra, self._asked, has_calls=has_calls)
        usage = usage_fields(self._ending.usage)
        last = _event("message_delta", delta=why, usage=usage) + _event("message_stop")
        return b"".join(self._closed()) + last

    def broken(self, error: D8Error) -> bytes:
        """Return the error; that no ``message_stop`` comes says that the message is cut."""
        body = error_body(error, self._request_id)
        return SSE.render(Event("error", body))

    def _opened(self, kind: str) -> list[bytes]:
        """Return what makes a block of this kind the open one."""
        return (
            [] if self._open == kind else [*self._closed(), self._start(kind, _BLANK_BLOCKS[kind])]
        )

    def _called(self, call: JsonObject) -> list[bytes]:
        """Return a whole call: its input as one text of JSON."""
        block = tool_use(call, self._task_id, self._calls)
        self._calls += 1
        text = json.dumps(block["input"], ensure_ascii=False)
        return [
            *self._closed(),
            self._start("tool_use", block | {"input": {}}),
            self._delta("input_json_delta", partial_json=text),
            *self._closed(),
        ]

    def _closed(self) -> list[bytes]:
        """Return what closes the block that is open, if one is."""
        if not self._open:
            return []
        signed = self._open == "thinking"
        self._open = ""
        return [
            *([self._delta("signature_delta", signature=SIGNATURE)] if signed else []),
            _event("content_block_stop", index=self._index),
        ]

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        self._index, self._open = self._index + 1, kind
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **said: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind} | said)


def _event(kind: str, **fields: object) -> bytes:
    """Return an event, whose name is its type."""
    return SSE.render(Event(kind, {"type": kind} | fields))
