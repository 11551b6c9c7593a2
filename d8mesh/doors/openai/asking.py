"""Answers what is asked of models: whole, or while it grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.llm.callers import caller_of
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.llm.ignored import ignored_fields_header
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.calls import LlmCall
from d8mesh.doors.openai.errors import named
from d8mesh.errors import InvalidTaskError
from d8mesh.http.answers import Response, answer
from d8mesh.http.off_loop import off_loop
from d8mesh.http.routes import Request
from d8mesh.http.strict import parse_lenient_json

OPENAI_DOOR: Final = "openai"
#: A number of a vector takes about so many bytes in an answer.
_NUMBER_BYTES: Final = 20


class CallAnswers:
    """Answers one call of `doors.openai.calls`."""

    def __init__(self, chats: Chats, call: LlmCall) -> None:
        self._chats, self._call = chats, call

    def asked(self, body: bytes) -> AskedOfModels:
        """Return what a body asks; raises `InvalidTaskError`."""
        if not body.strip():
            raise InvalidTaskError("the body is empty: expected a JSON object")
        return self._call.asked(parse_lenient_json(body))

    async def answer(self, request: Request) -> Response:
        """Have it done."""
        asked: AskedOfModels = request.value
        caller, created = caller_of(request, OPENAI_DOOR), int(time.time())
        ignored = list(asked.ignored)
        if asked.is_streamed and self._call.form is not None:
            form = self._call.form(asked, created)
            response = await self._chats.stream(caller, asked.tasks, form)
        else:
            answers = await self._chats.whole(caller, asked.tasks)
            response = await off_loop(
                _size_of(answers),
                lambda answers: answer(self._call.body(asked, answers, created)),
                answers,
            )
            response.headers |= self._chats.headers(answers)
            ignored += [name for each in answers for name in _ignored_by(each)]
        response.headers |= named() | ignored_fields_header(ignored)
        return response


def _ignored_by(answered: LlmAnswer) -> Sequence[str]:
    """Return what the service that answered does not take."""
    said = answered.completion or answered.embeddings
    return () if said is None else said.ignored


def _size_of(answers: Sequence[LlmAnswer]) -> int:
    """Return about how many bytes an answer has."""
    size = 0
    for each in answers:
        if each.embeddings is not None:
            size += _NUMBER_BYTES * sum(map(len, each.embeddings.vectors))
        if each.completion is not None:
            size += len(each.completion.text) + len(each.completion.thinking)
    return size
