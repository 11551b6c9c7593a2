"""The models of the mesh as OpenAI lists them, or as another API does on the same paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

from d8mesh.doors.llm.catalogue import KnownModel, ModelCatalogue
from d8mesh.doors.openai.errors import named
from d8mesh.errors import ModelUnknownError
from d8mesh.http.answers import Response, answer
from d8mesh.http.routes import Request

#: Who owns what has no owner in its name, as Ollama tells it.
_NO_OWNER: Final = "library"
#: Answers in the form of another API whose clients ask on the same paths: of all models, or of the
#: one that is named. None: the request is not of such a client.
AnswersOthers: TypeAlias = Callable[[Request, str | None], Awaitable[Response | None]]


class ListingCalls:
    """Answers ``GET /v1/models`` and ``GET /v1/models/{id}``, also with all machines away."""

    def __init__(self, catalogue: ModelCatalogue, others: AnswersOthers | None = None) -> None:
        self._catalogue, self._others = catalogue, others

    async def listed(self, request: Request) -> Response:
        """``GET /v1/models``"""
        if self._others is not None and (told := await self._others(request, None)) is not None:
            return told
        known = await self._catalogue.named()
        data = [model_body(name, model) for name, model in known.items()]
        return _named_answer({"object": "list", "data": data})

    async def one(self, request: Request, model: str) -> Response:
        """``GET /v1/models/{id}``: by any name of it, which is told as it was asked."""
        if self._others is not None and (told := await self._others(request, model)) is not None:
            return told
        known = await self._catalogue.find(model)
        if known is None:
            raise ModelUnknownError(f"The model {model[:200]!r} does not exist")
        return _named_answer(model_body(model, known))


def model_body(name: str, model: KnownModel) -> dict[str, Any]:
    """Return what is told of one model."""
    _, _, owner = name.rpartition("/")[0].rpartition("/")
    return {
        "id": name,
        "object": "model",
        "created": _unix_seconds(model.modified_at),
        "owned_by": owner or _NO_OWNER,
    }


def _unix_seconds(told: str) -> int:
    """Return a time of RFC 3339 in Unix seconds; 0 if it is none."""
    try:
        return max(0, int(datetime.fromisoformat(told).timestamp()))
    except (ValueError, OverflowError, OSError):
        return 0


def _named_answer(body: dict[str, Any]) -> Response:
    response = answer(body)
    response.headers |= named()
    return response
