"""A growing answer of ``/v1/responses``: named events with rising numbers. Pure.

The last event always tells how it ended: ``response.completed``, ``response.incomplete`` or
``response.failed``.
"""

from __future__ import annotations

from typing import Any, Final

from d8mesh.core.protocol.chat import Ending, JsonObject, Origin, Piece
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.errors import error_body, status_of
from d8mesh.doors.openai.responses_answer import (
    COMPLETED,
    blank_response,
    call_item,
    ended_fields,
    item_id,
    message_item,
    reasoning_item,
    rows_of_logprobs,
    status_of_ending,
    summary_part,
    text_part,
)
from d8mesh.doors.openai.sse import COMMENT
from d8mesh.errors import D8Error
from d8mesh.http.events import SSE, Event

#: OpenAI's code of a failed answer, by the status that the error would have had; else server_error.
_FAILED_CODES: Final = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseForm:
    """Writes one answer (`StreamForm`): its items one after the other, each begun and done.

    Args:
        created: Unix seconds.
    """

    media_type = SSE.media_type
    comment = COMMENT

    def __init__(self, asked: AskedOfModels, created: int) -> None:
        self._asked, self._created = asked, created
        self._task_id = ""
        self._number = -1  #: of the event that was written last
        self._output: list[dict[str, Any]] = []  #: items that are done
        self._open = ""  #: the type of the item that grows
        self._said: list[str] = []  #: its text so far
        self._logprobs: list[object] = []
        self._ending = Ending()

    def begin(self, task_ids: list[str]) -> bytes:
        """Return the head of the answer."""
        (self._task_id,) = task_ids
        blank = blank_response(self._asked, self._task_id, self._created)
        created = self._event("response.created", response=blank)
        return created + self._event("response.in_progress", response=blank)

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return what was said, as deltas of its items."""
        written: list[bytes] = []
        if piece.thinking:
            written += self._opened("reasoning")
            written.append(self._thought(piece.thinking))
        if piece.text:
            written += self._opened("message")
            written.append(self._text(piece))
        for call in piece.tool_calls:
            written += self._called(call)
        if piece.ending is not None:
            self._ending = piece.ending
        return b"".join(written)

    def end(self) -> bytes:
        """Return how it ended and what it took."""
        written = self._done(status_of_ending(self._ending))
        fields = ended_fields(self._ending)
        written.append(self._last(f"response.{fields['status']}", fields))
        return b"".join(written)

    def broken(self, error: D8Error) -> bytes:
        """Return what was said whole before it broke, and why it did."""
        code = _FAILED_CODES.get(status_of(error), "server_error")
        told = {"code": code, "message": error_body(error)["error"]["message"]}
        return self._last("response.failed", {"status": "failed", "error": told})

    def _opened(self, kind: str) -> list[bytes]:
        """Return what makes an item of this type the one that grows."""
        if self._open == kind:
            return []
        written = self._done()
        self._open = kind
        place = {"output_index": len(self._output)}
        if kind == "reasoning":
            blank = reasoning_item(self._task_id, len(self._output), "") | {"summary": []}
            added, part = "response.reasoning_summary_part.added", summary_part("")
        else:
            blank = message_item(self._task_id, len(self._output), "") | {"content": []}
            added, part = "response.content_part.added", text_part("")
        begun = blank | {"status": "in_progress"}
        written.append(self._event("response.output_item.added", **place, item=begun))
        written.append(self._event(added, **self._place(), part=part))
        return written

    def _thought(self, said: str) -> bytes:
        self._said.append(said)
        return self._event("response.reasoning_summary_text.delta", **self._place(), delta=said)

    def _text(self, piece: Piece) -> bytes:
        self._said.append(piece.text)
        self._logprobs += piece.logprobs
        told = {"delta": piece.text, "logprobs": rows_of_logprobs(piece.logprobs)}
        return self._event("response.output_text.delta", **self._place(), **told)

    def _called(self, call: JsonObject) -> list[bytes]:
        """Return a whole call: its arguments as one text of JSON."""
        written = self._done()
        item = call_item(self._task_id, len(self._output), call)
        place = {"output_index": len(self._output)}
        grows = {"item_id": item["id"]} | place
        arguments, begun = item["arguments"], {"arguments": "", "status": "in_progress"}
        written += [
            self._event("response.output_item.added", **place, item=item | begun),
            self._event("response.function_call_arguments.delta", **grows, delta=arguments),
            self._event("response.function_call_arguments.done", **grows, arguments=arguments),
            self._event("response.output_item.done", **place, item=item),
        ]
        self._output.append(item)
        return written

    def _done(self, status: str = COMPLETED) -> list[bytes]:
        """Return what ends the item that grows, if one does."""
        kind, text = self._open, "".join(self._said)
        if not kind:
            return []
        index, place = len(self._output), self._place()
        rows = rows_of_logprobs(self._logprobs)
        if kind == "reasoning":
            item, part = reasoning_item(self._task_id, index, text), summary_part(text)
            names = ("reasoning_summary_text", "reasoning_summary_part")
            told: dict[str, Any] = {"text": text}
        else:
            item = message_item(self._task_id, index, text, status)
            part = item["content"][0] = text_part(text) | {"logprobs": rows}
            names = ("output_text", "content_part")
            told = {"text": text, "logprobs": rows}
        self._output.append(item)
        self._open, self._said, self._logprobs = "", [], []
        return [
            self._event(f"response.{names[0]}.done", **place, **told),
            self._event(f"response.{names[1]}.done", **place, part=part),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _place(self) -> dict[str, Any]:
        """Return where the item that grows does so."""
        index = len(self._output)
        inner = "summary_index" if self._open == "reasoning" else "content_index"
        return {
            "item_id": item_id(self._open, self._task_id, index),
            "output_index": index,
            inner: 0,
        }

    def _last(self, kind: str, fields: dict[str, Any]) -> bytes:
        blank = blank_response(self._asked, self._task_id, self._created)
        return self._event(kind, response=blank | {"output": self._output} | fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        """Return the next event, whose name is its type."""
        self._number += 1
        return SSE.render(Event(kind, {"type": kind, "sequence_number": self._number} | fields))
