"""The calls that tell of models, and of this server; all from memory."""

from __future__ import annotations

from typing import Final

from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.ollama.models import ps_body, show_body, tags_body
from d8mesh.doors.ollama.values import name_in, object_in, unknown_model
from d8mesh.errors import InvalidTaskError
from d8mesh.http.answers import Refusal, Response, answer
from d8mesh.http.routes import Request

#: Whose interface this is: programs read numbers and dots, and ask for a version at least so new.
OLLAMA_VERSION: Final = "0.33.0"
ROOT_TEXT: Final = b"Ollama is running"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
_NO_ACCOUNT: Final = "unauthorized: a mesh has no account at ollama.com, and needs none"


def shown_in(content: bytes) -> str:
    """Return the model that a show names.

    Raises:
        InvalidTaskError: it names none.
    """
    name = name_in(object_in(content), "model", "name")
    if not name.strip():
        raise InvalidTaskError("model is required")
    return name


class ListCalls:
    """Answers the calls that only tell."""

    def __init__(self, catalogue: ModelCatalogue) -> None:
        self._catalogue = catalogue

    async def root(self, request: Request) -> Response:
        """``GET /``"""
        return Response(ROOT_TEXT, content_type=TEXT_TYPE)

    async def version(self, request: Request) -> Response:
        """``GET /api/version``"""
        return answer({"version": OLLAMA_VERSION})

    async def tags(self, request: Request) -> Response:
        """``GET /api/tags``"""
        return answer(tags_body(await self._catalogue.named()))

    async def ps(self, request: Request) -> Response:
        """``GET /api/ps``"""
        return answer(ps_body(await self._catalogue.named()))

    async def show(self, request: Request) -> Response:
        """``POST /api/show``"""
        name: str = request.value
        known = await self._catalogue.find(name)
        if known is None:
            raise unknown_model(name)
        return answer(show_body(known, await self._catalogue.describe(known.name)))

    async def status(self, request: Request) -> Response:
        """``GET /api/status``: Ollama's cloud is not reached from here."""
        return answer({"cloud": {"disabled": True, "source": "config"}})

    async def me(self, request: Request, key: str = "") -> Response:
        """``POST /api/me`` and what else is about an account."""
        raise Refusal("access.token", _NO_ACCOUNT)

    async def experimental(self, request: Request, rest: str) -> Response:
        """``/api/experimental/…``"""
        text = f"{rest[:80]} is a service of ollama.com, which a mesh does not use"
        raise Refusal("access.forbidden", text)
