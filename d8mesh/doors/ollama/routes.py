"""Ollama's door: its routes, as its programs know them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY, TokenScope
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.ollama.changes import ChangeCalls, named_in_change, pull_in, source_in
from d8mesh.doors.ollama.described import OLLAMA_CALLS, OllamaProblem
from d8mesh.doors.ollama.errors import REQUEST_ID, ollama_problem, request_id
from d8mesh.doors.ollama.lists import ListCalls, shown_in
from d8mesh.doors.ollama.pulls import Pulls
from d8mesh.doors.ollama.text_requests import chat_in, generate_in
from d8mesh.doors.ollama.texts import TextCalls
from d8mesh.doors.ollama.vector_requests import embed_in, embeddings_in
from d8mesh.http.answers import Response
from d8mesh.http.origins import no_origin
from d8mesh.http.routes import MAX_BODY_BYTES, Door, HttpRoute, Request, with_descriptions
from d8mesh.nodes.client.aio.node import AsyncNode

#: Of a body of which nothing is read: it is refused for what it is, not for its size.
UNREAD_BYTES: Final = 2**63
#: Paths whose errors are told in Ollama's form; the others below /api are those of REST.
OLLAMA_PATHS: Final = (
    "/", "/api/blobs", "/api/chat", "/api/copy", "/api/create", "/api/delete", "/api/embed",
    "/api/embeddings", "/api/experimental", "/api/generate", "/api/me", "/api/ps", "/api/pull",
    "/api/push", "/api/show", "/api/signout", "/api/status", "/api/tags", "/api/user",
    "/api/version",
)  # fmt: skip


def ollama_door(
    mesh: AsyncNode,
    chats: Chats,
    catalogue: ModelCatalogue,
    *,
    model_changes: str,
    origins: Callable[[str], bool] = no_origin,
) -> Door:
    """Return the door.

    Args:
        model_changes: what D8_MODEL_CHANGES says.
        origins: whether pages of this origin may use it.
    """
    texts, lists = TextCalls(chats, catalogue), ListCalls(catalogue)
    pulls = Pulls(mesh, chats, catalogue)
    changes = ChangeCalls(pulls, chats, catalogue, allowed=model_changes)
    get = HttpRoute
    taken = partial(HttpRoute, takes=None, decodes=True, ends_with_caller=True)
    post, delete = partial(taken, method="POST"), partial(taken, method="DELETE")
    much = partial(post, max_body_bytes=MAX_BODY_BYTES)
    unread = partial(post, is_streamed=True, max_body_bytes=UNREAD_BYTES)
    change = partial(post, scopes=ADMIN_ONLY)
    routes = (
        get("/", lists.root),
        get("/api/version", lists.version),
        get("/api/tags", lists.tags),
        get("/api/ps", lists.ps),
        get("/api/status", lists.status),
        post("/api/show", lists.show, shown_in),
        much("/api/chat", texts.text, chat_in),
        much("/api/generate", texts.text, generate_in),
        much("/api/embed", texts.vectors, embed_in),
        much("/api/embeddings", texts.vectors, embeddings_in),
        change("/api/pull", changes.pull, pull_in),
        delete("/api/delete", changes.delete, named_in_change, scopes=ADMIN_ONLY),
        change("/api/copy", changes.copy, source_in),
        unread("/api/create", changes.make, scopes=ADMIN_ONLY),
        unread("/api/push", changes.make, scopes=ADMIN_ONLY),
        get("/api/blobs/<digest>", changes.blob),
        unread("/api/blobs/<digest>", changes.upload, scopes=ADMIN_ONLY),
        unread("/api/me", lists.me),
        unread("/api/signout", lists.me),
        delete("/api/user/keys/<path:key>", lists.me),
        unread("/api/experimental/<path:rest>", lists.experimental),
    )
    return Door(
        routes=with_descriptions(
            (replace(each, call=partial(_named, each.call)) for each in routes), OLLAMA_CALLS
        ),
        problem=ollama_problem,
        problem_kind=OllamaProblem,
        prefixes=OLLAMA_PATHS,
        origins=origins,
        scopes=frozenset({TokenScope.CHAT}),
    )


async def _named(
    call: Callable[..., Awaitable[Response]], request: Request, **values: str
) -> Response:
    """Answer with a name for the request."""
    response = await call(request, **values)
    response.headers[REQUEST_ID] = request_id()
    return response
