"""Loading a model and letting it go, for requests that ask nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from d8mesh.doors.llm.asked import Caller, LlmTask
from d8mesh.doors.llm.catalogue import KnownModel, ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.errors import BackendUnavailableError

LOAD_TYPE: Final = "model_load"
UNLOAD_TYPE: Final = "model_unload"


class Loading:
    """Has models loaded on a machine, and let go of on every one."""

    def __init__(self, chats: Chats, catalogue: ModelCatalogue) -> None:
        self._chats, self._catalogue = chats, catalogue

    async def load(self, caller: Caller, model: KnownModel, keep_alive: object = None) -> None:
        """Return when a machine has it in memory: one that has it already, else an idle one.

        Raises:
            BackendUnavailableError: no machine that has it is there.
            D8Error: it could not be loaded.
        """
        managed = await self._managed()
        if not managed.intersection(model.services) and not model.is_cloud:
            online = {each.id for each in await self._catalogue.services() if each.is_online}
            if not online.intersection(model.services):
                raise BackendUnavailableError(f"no machine that has {model.name!r} is there now")
        if home := await self._home(model, managed):
            kept = {} if keep_alive is None else {"keep_alive": keep_alive}
            await self._at(caller, LOAD_TYPE, model, [home], kept)

    async def unload(self, caller: Caller, model: KnownModel) -> None:
        """Return when no machine has it in memory any more."""
        managed = await self._managed()
        places = [each.service for each in model.loaded if each.service in managed]
        await self._at(caller, UNLOAD_TYPE, model, places, {})

    async def _at(
        self,
        caller: Caller,
        kind: str,
        model: KnownModel,
        places: list[str],
        more: dict[str, Any],
    ) -> None:
        tasks = [
            LlmTask(type=kind, data={"machine": each, **more}, model=model.name) for each in places
        ]
        if tasks:
            await self._chats.whole(caller, tasks)
            self._catalogue.forget()

    async def _managed(self) -> set[str]:
        """Return the services that load what they are told to, of those that are there."""
        services = await self._catalogue.services()
        return {each.id for each in services if each.is_online and each.is_managed}

    async def _home(self, model: KnownModel, managed: set[str]) -> str:
        """Return where to load it; "" if no service has it that can be told to."""
        for each in model.loaded:
            if each.service in managed:
                return each.service
        held = Counter(
            place.service for each in await self._catalogue.models() for place in each.loaded
        )
        able = [each for each in model.services if each in managed]
        return min(able, key=lambda each: held[each], default="")
