"""Answers to ``/v1/completions`` in OpenAI's form, whole and growing. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from d8mesh.core.protocol.chat import Origin, Piece, Usage
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import thoughts_body, usage_body
from d8mesh.doors.openai.sse import COMMENT, EVENT_STREAM, STREAM_END, broken, data_of
from d8mesh.errors import D8Error

COMPLETION_ID: Final = "cmpl-"
#: The same whole and in parts.
_OBJECT: Final = "text_completion"


def completion_body(
    asked: AskedOfModels, answers: Sequence[LlmAnswer], created: int
) -> dict[str, Any]:
    """Return a whole answer.

    Args:
        created: Unix seconds.
    """
    return {
        "id": COMPLETION_ID + answers[0].task_id,
        "object": _OBJECT,
        "created": created,
        "model": asked.model,
        "choices": [_choice(asked, i, answer) for i, answer in enumerate(answers)],
        "usage": usage_body(each.completion.ending.usage for each in answers if each.completion),
    }


class CompletionForm:
    """Writes one answer as it grows; see `doors.llm.forms.StreamForm`.

    Args:
        created: Unix seconds.
    """

    media_type = EVENT_STREAM
    comment = COMMENT

    def __init__(self, asked: AskedOfModels, created: int) -> None:
        self._asked, self._created = asked, created
        self._id = ""
        self._usages: list[Usage] = []
        #: characters of each choice so far; a choice that has begun is there
        self._written: dict[int, int] = {}

    def begin(self, task_ids: list[str]) -> bytes:
        """Remember who answers: the first names the whole."""
        self._id = COMPLETION_ID + task_ids[0]
        return b""

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return the chunks of what a choice says."""
        text = piece.text
        if index not in self._written:
            self._written[index] = 0
            text = _echo(self._asked, index) + text
        written = b""
        if text or piece.thinking or piece.logprobs:
            logprobs = _logprobs(piece.logprobs, self._written[index])
            written = self._chunk(
                {"text": text, "index": index, "logprobs": logprobs, "finish_reason": None}
                | thoughts_body(piece.thinking)
            )
        self._written[index] += len(text)
        if piece.ending is not None:
            self._usages.append(piece.ending.usage)
            reason = str(piece.ending.finish_reason)
            written += self._chunk(
                {"text": "", "index": index, "logprobs": None, "finish_reason": reason}
            )
        return written

    def end(self) -> bytes:
        """Return the tokens that it took, if they are wished for, and the end."""
        if not self._asked.has_usage:
            return STREAM_END
        return data_of(self._body([], usage=usage_body(self._usages))) + STREAM_END

    def broken(self, error: D8Error) -> bytes:
        """Return why it is not complete."""
        return broken(error)

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return data_of(self._body([choice]))

    def _body(
        self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        body = {
            "id": self._id,
            "object": _OBJECT,
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }
        return body | ({"usage": usage} if self._asked.has_usage else {})


def _choice(asked: AskedOfModels, index: int, answer: LlmAnswer) -> dict[str, Any]:
    said = answer.completion
    assert said is not None
    echo = _echo(asked, index)
    return {
        "text": echo + said.text,
        "index": index,
        "logprobs": _logprobs(said.logprobs, len(echo)),
        "finish_reason": str(said.ending.finish_reason),
        **thoughts_body(said.thinking),
    }


def _echo(asked: AskedOfModels, index: int) -> str:
    return asked.echoes[index] if asked.echoes else ""


def _logprobs(logprobs: Sequence[object], offset: int) -> dict[str, Any] | None:
    """Return how likely the tokens of a text were, in the lists that completions have.

    Args:
        offset: characters of the text before them.
    """
    rows = [each for each in logprobs if isinstance(each, Mapping)]
    if not rows:
        return None
    tokens = [str(row.get("token", "")) for row in rows]
    return {
        "tokens": tokens,
        "token_logprobs": [row.get("logprob", 0.0) for row in rows],
        "top_logprobs": [_alternatives(row) for row in rows],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)),
    }


def _alternatives(row: Mapping[str, Any]) -> dict[str, Any]:
    top = row.get("top_logprobs")
    listed = top if isinstance(top, list) else []
    return {str(each.get("token", "")): each.get("logprob") for each in listed}
