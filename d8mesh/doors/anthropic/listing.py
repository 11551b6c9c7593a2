"""The models of the mesh as Anthropic's API lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from d8mesh.core.protocol.model_names import plain_name
from d8mesh.doors import query
from d8mesh.doors.anthropic.problems import anthropic_problem, named, request_id
from d8mesh.doors.llm.catalogue import KnownModel
from d8mesh.errors import D8Error, InvalidTaskError, ModelUnknownError
from d8mesh.http.answers import Response, answer
from d8mesh.http.routes import Request

#: Models on a page: as many as Anthropic's API tells if nothing is said, and at most.
PAGE_MODELS: Final = 20
MAX_PAGE_MODELS: Final = 1000
#: When a model was made is told so where that is not known.
_UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"
#: Who sends it speaks Anthropic's API: `/v1/models` is OpenAI's too.
_VERSION_HEADER: Final = "anthropic-version"


class NamesModels(Protocol):
    """What knows the models of the mesh: `ModelCatalogue`."""

    async def named(self) -> dict[str, KnownModel]:
        """Return all that may be asked by each name, as lists show names."""


class AnthropicModels:
    """Answers ``GET /v1/models`` and ``GET /v1/models/ID`` to who speaks Anthropic's API."""

    def __init__(self, catalogue: NamesModels) -> None:
        self._catalogue = catalogue

    async def answered(self, request: Request, name: str | None) -> Response | None:
        """Return the answer, errors included; None: the request speaks another API.

        Args:
            name: of the model that is asked for; None: all.
        """
        if _VERSION_HEADER not in request.fields:
            return None
        try:
            models = await self._catalogue.named()
            body = models_page(models, request.args) if name is None else _info_of(name, models)
        except D8Error as error:
            response = anthropic_problem(error)
            response.error = error
            return response
        response = answer(body)
        response.headers |= named(request_id())
        return response


def models_page(named: Mapping[str, KnownModel], args: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the models, each by every name that it is listed under.

    Args:
        args: ``limit``, ``after_id`` and ``before_id`` of the request.

    Raises:
        InvalidTaskError: one of these is not what it must be.
    """
    limit = query.integer(args, "limit", default=PAGE_MODELS, most=MAX_PAGE_MODELS)
    names = list(named)
    after, before = args.get("after_id"), args.get("before_id")
    if before:
        left = names[: _place(names, "before_id", before)]
        page, has_more = left[-limit:], len(left) > limit
    else:
        left = names[_place(names, "after_id", after) + 1 if after else 0 :]
        page, has_more = left[:limit], len(left) > limit
    return {
        "data": [model_info(name, named[name]) for name in page],
        "has_more": has_more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def model_info(name: str, model: KnownModel) -> dict[str, Any]:
    """Return what is told of one model."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": model.modified_at or _UNKNOWN_DATE,
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens or None,
        "max_tokens": model.context_tokens or None,
    }


def _place(names: list[str], field: str, name: str) -> int:
    if name not in names:
        raise InvalidTaskError(f"{field}: there is no model {name[:120]!r} in the list")
    return names.index(name)


def _info_of(name: str, named_models: Mapping[str, KnownModel]) -> dict[str, Any]:
    plain = plain_name(name)
    for listed, model in named_models.items():
        if plain_name(listed) == plain:
            return model_info(listed, model)
    raise ModelUnknownError(f"there is no model {name[:120]!r} in the mesh")
