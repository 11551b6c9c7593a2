"""The door of Anthropic's Messages API: its calls, and those that it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.core.protocol.chat import THINKING
from d8mesh.doors.anthropic.described import ANTHROPIC_CALLS, AnthropicProblem
from d8mesh.doors.anthropic.message_answer import message_body
from d8mesh.doors.anthropic.message_request import AskedMessage, asked_of_message
from d8mesh.doors.anthropic.message_stream import MessageForm
from d8mesh.doors.anthropic.problems import anthropic_problem, named, request_id
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.llm.callers import caller_of
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.llm.ignored import ignored_fields_header
from d8mesh.doors.llm.wanted import FindsModels, HasAbilities
from d8mesh.http.answers import Refusal, Response, answer
from d8mesh.http.origins import no_origin
from d8mesh.http.routes import MAX_BODY_BYTES, Door, HttpRoute, Request, with_descriptions
from d8mesh.http.strict import parse_lenient_json

ANTHROPIC: Final = "anthropic"
#: All paths of the door.
MESSAGES_PATH: Final = "/v1/messages"
_NO_COUNT: Final = (
    "tokens are not counted before a model reads them: the usage of an answer tells how many they "
    "were"
)
_NO_BATCHES: Final = (
    "batches of messages are not taken here: send each to /v1/messages, or a batch of OpenAI's "
    "form to /v1/batches"
)


def anthropic_door(
    chats: Chats, models: FindsModels, origins: Callable[[str], bool] = no_origin
) -> Door:
    """Return the door.

    Args:
        models: what is known of the models of the mesh.
        origins: whose pages may use it.
    """
    taken = partial(HttpRoute, takes=None, decodes=True, max_body_bytes=MAX_BODY_BYTES)
    batches = f"{MESSAGES_PATH}/batches"
    no_batches = partial(_refuse, _NO_BATCHES)
    calls = MessageCalls(chats, models)
    routes = (
        taken(MESSAGES_PATH, calls.create, asked_of, method="POST", ends_with_caller=True),
        taken(f"{MESSAGES_PATH}/count_tokens", partial(_refuse, _NO_COUNT), method="POST"),
        taken(batches, no_batches, method="POST"),
        HttpRoute(batches, no_batches),
        HttpRoute(f"{batches}/<path:inner>", no_batches),
        taken(f"{batches}/<path:inner>", no_batches, method="POST"),
        taken(f"{batches}/<path:inner>", no_batches, method="DELETE"),
    )
    return Door(
        routes=with_descriptions(routes, ANTHROPIC_CALLS),
        problem=anthropic_problem,
        problem_kind=AnthropicProblem,
        prefixes=(MESSAGES_PATH,),
        origins=origins,
        scopes=frozenset({TokenScope.CHAT}),
    )


def asked_of(body: bytes) -> AskedMessage:
    """Return what a body asks; raises as `asked_of_message` does."""
    return asked_of_message(parse_lenient_json(body))


class MessageCalls:
    """Answers ``POST /v1/messages``."""

    def __init__(self, chats: Chats, models: FindsModels) -> None:
        self._chats, self._models = chats, models

    async def create(self, request: Request) -> Response:
        """Have a message written; a stream begins with its first word."""
        caller = caller_of(request, ANTHROPIC)
        asked: AskedMessage = request.value
        if asked.task.data.get("think"):
            asked = without_thinking(asked, await self._models.find(asked.task.model))
        asked_id, ignored = request_id(), asked.ignored
        if asked.is_streamed:
            form = MessageForm(asked, asked_id)
            response = await self._chats.stream(caller, [asked.task], form)
        else:
            answers = await self._chats.whole(caller, [asked.task])
            response = answer(message_body(asked, answers[0]))
            response.headers |= self._chats.headers(answers)
            ignored += _ignored_by(answers[0])
        response.headers |= named(asked_id) | ignored_fields_header(ignored)
        return response


def without_thinking(asked: AskedMessage, known: HasAbilities | None) -> AskedMessage:
    """Return the request without its wish for thoughts if the model is known to have none.

    Programs for Anthropic's models wish for them by themselves, whatever the model.
    """
    if known is None or not known.can or THINKING in known.can:
        return asked
    data = {name: value for name, value in asked.task.data.items() if name != "think"}
    ignored = tuple(dict.fromkeys((*asked.ignored, "thinking")))
    return replace(asked, task=replace(asked.task, data=data), ignored=ignored)


def _ignored_by(answered: LlmAnswer) -> tuple[str, ...]:
    """Return what the service that answered does not take."""
    return () if answered.completion is None else answered.completion.ignored


async def _refuse(why: str, request: Request, **_: Any) -> Response:
    raise Refusal("http.not_found", why)
