"""Loading a model and letting it go, for requests that ask nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from d8mesh.core.protocol.model_names import plain_name
from d8mesh.doors.llm.asked import Caller, LlmTask
from d8mesh.doors.llm.catalogue import KnownModel, KnownService, ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.errors import BackendUnavailableError

LOAD_TYPE: Final = "model_load"
UNLOAD_TYPE: Final = "model_unload"


class ModelLoading:
    """Has models loaded on a machine, and let go of on every one."""

    def __init__(self, chats: Chats, catalogue: ModelCatalogue) -> None:
        self._chats, self._catalogue = chats, catalogue

    async def load(self, caller: Caller, model: KnownModel, keep_alive: object = None) -> None:
        """Return when a machine has it in memory; what loads by itself when asked is not told to.

        Raises:
            BackendUnavailableError: no machine that has it is there.
            D8Error: it could not be loaded.
        """
        able = [each for each in await self._having(model) if each.is_managed]
        if able:
            kept = {} if keep_alive is None else {"keep_alive": keep_alive}
            plain = plain_name(model.name)
            home = min(able, key=lambda each: (plain not in each.loaded, len(each.loaded)))
            await self._at(caller, LOAD_TYPE, model, [home], kept)

    async def unload(self, caller: Caller, model: KnownModel) -> None:
        """Return when no machine has it in memory any more."""
        plain = plain_name(model.name)
        having = [each for each in await self._catalogue.services() if plain in each.loaded]
        places = [each for each in having if each.is_online and each.is_managed]
        await self._at(caller, UNLOAD_TYPE, model, places, {})

    async def _having(self, model: KnownModel) -> Sequence[KnownService]:
        plain = plain_name(model.name)
        services = await self._catalogue.services()
        found = [each for each in services if each.is_online and plain in each.models]
        if not found:
            raise BackendUnavailableError(f"no machine that has {model.name!r} is there now")
        return found

    async def _at(
        self,
        caller: Caller,
        kind: str,
        model: KnownModel,
        places: Sequence[KnownService],
        more: dict[str, Any],
    ) -> None:
        tasks = [
            LlmTask(type=kind, data={"machine": each.id, **more}, model=model.name)
            for each in places
        ]
        if tasks:
            await self._chats.whole(caller, tasks)
            self._catalogue.forget()
