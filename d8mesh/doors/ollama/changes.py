"""The calls that change models: pull and delete, as far as D8_MODEL_CHANGES goes; others not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from d8mesh.core.protocol.model_names import plain_name
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.callers import caller_of
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.ollama.pulls import Pulls, lines_response, present_lines
from d8mesh.doors.ollama.texts import OLLAMA_DOOR
from d8mesh.doors.ollama.values import name_in, object_in, switch_in, text_in, unknown_model
from d8mesh.errors import ForbiddenError, InvalidTaskError
from d8mesh.http.answers import CLOSES, Refusal, Response
from d8mesh.http.routes import Request

REMOVE_TYPE: Final = "model_remove"
#: What D8_MODEL_CHANGES may be.
NO_CHANGES: Final = "none"
ALL_CHANGES: Final = "all"
_FORBIDDEN: Final = "access.forbidden"


@dataclass(frozen=True, slots=True)
class AskedChange:
    """What a call that changes a model asks."""

    model: str
    is_streamed: bool = True


def pull_in(content: bytes) -> AskedChange:
    """Return what a pull asks.

    Raises:
        InvalidTaskError: it is not what it must be.
    """
    body = object_in(content)
    name = name_in(body, "model", "name").strip()
    if not name:
        raise InvalidTaskError("invalid model name")
    return AskedChange(name, switch_in(body, "stream", default=True))


def named_in_change(content: bytes) -> AskedChange:
    """Return the model that a delete names; raises as `pull_in`."""
    name = name_in(object_in(content), "model", "name")
    if not name.strip():
        raise InvalidTaskError("model is required")
    return AskedChange(name)


def source_in(content: bytes) -> AskedChange:
    """Return the model that is to be copied; raises as `pull_in`."""
    return AskedChange(text_in(object_in(content), "source"))


class ChangeCalls:
    """Answers the calls that change models.

    Args:
        allowed: what D8_MODEL_CHANGES says.
    """

    def __init__(
        self, pulls: Pulls, chats: Chats, catalogue: ModelCatalogue, *, allowed: str
    ) -> None:
        self._pulls, self._chats, self._catalogue = pulls, chats, catalogue
        self._allowed = allowed

    async def pull(self, request: Request) -> Response:
        """``POST /api/pull``: of what is there nothing is pulled."""
        asked: AskedChange = request.value
        known = await self._catalogue.find(asked.model)
        if known is not None:
            return lines_response(present_lines(known), is_streamed=asked.is_streamed)
        if self._allowed == NO_CHANGES:
            raise ForbiddenError(_refused(f"pulling {asked.model}"))
        caller = caller_of(request, OLLAMA_DOOR)
        return await self._pulls.pull(caller, asked.model, is_streamed=asked.is_streamed)

    async def delete(self, request: Request) -> Response:
        """``DELETE /api/delete``: from every machine that has it."""
        asked: AskedChange = request.value
        known = await self._catalogue.find(asked.model)
        if known is None:
            raise unknown_model(asked.model)
        if self._allowed != ALL_CHANGES:
            raise ForbiddenError(_refused(f"deleting {asked.model}"))
        plain = plain_name(asked.model)
        tasks = [
            LlmTask(type=REMOVE_TYPE, data={"machine": each.id}, model=asked.model.strip())
            for each in await self._catalogue.services()
            if each.is_online and each.is_managed and plain in each.models
        ]
        if not tasks:
            raise ForbiddenError(f"no machine that has {asked.model} lets the mesh delete it")
        await self._chats.whole(caller_of(request, OLLAMA_DOOR), tasks)
        await self._catalogue.see(asked.model, is_there=False)
        return Response(b"")

    async def copy(self, request: Request) -> Response:
        """``POST /api/copy``: a mesh gives no model another name."""
        asked: AskedChange = request.value
        if await self._catalogue.find(asked.model) is None:
            raise unknown_model(asked.model)
        raise ForbiddenError("a mesh copies no models: use ollama cp on the machine itself")

    async def make(self, request: Request) -> Response:
        """``POST /api/create`` and ``/api/push``: a mesh does neither."""
        verb = request.path.rpartition("/")[2]
        text = f"a mesh has no {verb}: use ollama {verb} on the machine itself"
        raise Refusal(_FORBIDDEN, text, headers=CLOSES)

    async def blob(self, request: Request, digest: str) -> Response:
        """``HEAD /api/blobs/…``: there are none."""
        raise Refusal("http.not_found", f"blob {digest[:80]} not found")

    async def upload(self, request: Request, digest: str) -> Response:
        """``POST /api/blobs/…``: none are taken, and nothing of it is read."""
        text = "a mesh takes no blobs: use ollama create on the machine itself"
        raise Refusal(_FORBIDDEN, text, headers=CLOSES)


def _refused(what: str) -> str:
    return f"{what}: D8_MODEL_CHANGES of the orchestrator does not allow that"
