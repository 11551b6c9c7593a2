"""OpenAI's door: its routes, as the official clients know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.openai.asking import CallAnswers
from d8mesh.doors.openai.calls import CALLS
from d8mesh.doors.openai.described import OPENAI_CALLS, OpenAiProblem
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.doors.openai.listing import AnswersOthers, ListingCalls
from d8mesh.http.routes import MAX_BODY_BYTES, Door, HttpRoute, with_descriptions

#: Paths whose errors are told in OpenAI's form.
OPENAI_PREFIXES: Final = ("/v1",)


def openai_door(
    chats: Chats,
    catalogue: ModelCatalogue,
    *,
    origins: Callable[[str], bool],
    lists_for_others: AnswersOthers | None = None,
) -> Door:
    """Return the door.

    Args:
        origins: whether web pages of an origin may use it.
        lists_for_others: of the API whose clients list models on the same paths.
    """
    lists = ListingCalls(catalogue, lists_for_others)
    routes = [
        HttpRoute("/v1/models", lists.listed),
        HttpRoute("/v1/models/<path:model>", lists.one),
    ]
    for path, call in CALLS.items():
        answers = CallAnswers(chats, call)
        routes.append(
            HttpRoute(
                path,
                answers.answer,
                answers.asked,
                method="POST",
                takes=None,
                decodes=True,
                max_body_bytes=MAX_BODY_BYTES,
                ends_with_caller=True,
            )
        )
    return Door(
        routes=with_descriptions(routes, OPENAI_CALLS),
        problem=openai_problem,
        problem_kind=OpenAiProblem,
        prefixes=OPENAI_PREFIXES,
        origins=origins,
        scopes=frozenset({TokenScope.CHAT}),
    )
