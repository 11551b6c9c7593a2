"""The calls that language models answer: how each is read, and how its answer is written. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.llm.forms import StreamForm
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import chat_body
from d8mesh.doors.openai.chat_request import asked_of_chat
from d8mesh.doors.openai.chat_stream import ChatForm
from d8mesh.doors.openai.completion_answer import CompletionForm, completion_body
from d8mesh.doors.openai.completion_request import asked_of_completion
from d8mesh.doors.openai.embedding_answer import embedding_body
from d8mesh.doors.openai.embedding_request import asked_of_embedding
from d8mesh.doors.openai.responses_answer import response_body
from d8mesh.doors.openai.responses_request import asked_of_response
from d8mesh.doors.openai.responses_stream import ResponseForm


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCall:
    """One of them.

    asked: makes of a body what it asks; raises `InvalidTaskError`, which names the field.
    body: makes of all answers, in the order of the tasks, the whole answer; its last argument is
        when it was made, in Unix seconds.
    form: writes an answer as it grows; None: it never does.
    """

    asked: Callable[[object], AskedOfModels]
    body: Callable[[AskedOfModels, Sequence[LlmAnswer], int], dict[str, Any]]
    form: Callable[[AskedOfModels, int], StreamForm] | None = None


CALLS: Final[Mapping[str, LlmCall]] = {
    "/v1/chat/completions": LlmCall(asked=asked_of_chat, body=chat_body, form=ChatForm),
    "/v1/completions": LlmCall(
        asked=asked_of_completion, body=completion_body, form=CompletionForm
    ),
    "/v1/responses": LlmCall(asked=asked_of_response, body=response_body, form=ResponseForm),
    "/v1/embeddings": LlmCall(asked=asked_of_embedding, body=embedding_body),
}
