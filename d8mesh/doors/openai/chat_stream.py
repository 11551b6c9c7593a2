"""A growing answer to ``/v1/chat/completions``: chunks of one id. Pure."""

from __future__ import annotations

from typing import Any, Final

from d8mesh.core.protocol.chat import Ending, Origin, Piece, Usage
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import (
    CHAT_ID,
    call_body,
    logprobs_body,
    reason_of,
    thoughts_body,
    usage_body,
)
from d8mesh.doors.openai.sse import COMMENT, EVENT_STREAM, STREAM_END, broken, data_of
from d8mesh.errors import D8Error
from d8mesh.http.events import json_line

#: The first delta of each choice, and the only one with a role.
_ROLE: Final = {"role": "assistant", "content": ""}


class ChatForm:
    """Writes one answer; see `doors.llm.forms.StreamForm`.

    The role goes out with the first piece, so that nothing but comments stands before it.

    Args:
        created: Unix seconds.
    """

    media_type = EVENT_STREAM
    comment = COMMENT

    def __init__(self, asked: AskedOfModels, created: int) -> None:
        self._asked, self._created = asked, created
        self._ids: list[str] = []
        self._usages: list[Usage] = []
        #: calls of each choice so far; a choice that has begun is there
        self._calls: dict[int, int] = {}
        #: what stands before and after a text, of each choice
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def begin(self, task_ids: list[str]) -> bytes:
        """Remember who answers: the first names the whole."""
        self._ids = task_ids
        return b""

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return the chunks of what a choice says."""
        if piece.is_text and index in self._calls:  # as nearly all are
            return self._text(index, piece.text)
        written = b""
        if index not in self._calls:
            self._calls[index] = 0
            written = self._chunk(index, _ROLE)
        if piece.thinking:
            written += self._chunk(index, thoughts_body(piece.thinking))
        if piece.text or piece.logprobs:
            logprobs = logprobs_body(piece.logprobs)
            written += self._chunk(index, {"content": piece.text}, logprobs=logprobs)
        for call in piece.tool_calls:
            written += self._call(index, call)
        if piece.ending is not None:
            written += self._end(index, piece.ending)
        return written

    def end(self) -> bytes:
        """Return the tokens that it took, if they are wished for, and the end."""
        if not self._asked.has_usage:
            return STREAM_END
        return data_of(self._body([], usage=usage_body(self._usages))) + STREAM_END

    def broken(self, error: D8Error) -> bytes:
        """Return why it is not complete."""
        return broken(error)

    def _text(self, index: int, text: str) -> bytes:
        """Return the chunk of a text: only that differs from one to the next."""
        frame = self._frames.get(index)
        if frame is None:
            before, _, after = self._chunk(index, {"content": ""}).rpartition(b'""')
            frame = self._frames[index] = before, after
        return b"%b%b%b" % (frame[0], json_line(text), frame[1])

    def _call(self, index: int, call: Any) -> bytes:
        """Return a call of a tool, whole, in one chunk."""
        n = self._calls[index]
        self._calls[index] += 1
        body = call_body(call, n, self._ids[index])
        if not self._asked.has_functions:
            return self._chunk(index, {"tool_calls": [{"index": n, **body}]})
        return self._chunk(index, {"function_call": body["function"]}) if n == 0 else b""

    def _end(self, index: int, ending: Ending) -> bytes:
        self._usages.append(ending.usage)
        reason = reason_of(
            ending.finish_reason,
            has_calls=self._calls[index] > 0,
            has_functions=self._asked.has_functions,
        )
        return self._chunk(index, {}, reason=reason)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return data_of(self._body([choice]))

    def _body(
        self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        body = {
            "id": CHAT_ID + self._ids[0],
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }
        return body | ({"usage": usage} if self._asked.has_usage else {})
