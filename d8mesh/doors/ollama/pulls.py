"""Pulls: a model is installed on one machine, and its progress told in Ollama's lines."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import msgspec

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.llm.asked import Caller, LlmTask
from d8mesh.doors.llm.catalogue import KnownModel, KnownService, ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.llm.endings import result_of
from d8mesh.doors.llm.wanted import group_of
from d8mesh.doors.ollama.answers import NDJSON_TYPE, line_of
from d8mesh.doors.ollama.errors import error_text
from d8mesh.errors import BackendUnavailableError, D8Error
from d8mesh.http.answers import Response, answer
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.aio.node import AsyncNode

PULL_TYPE: Final = "model_pull"
#: A pull that breaks off goes on at the next attempt with what is there.
PULL_ATTEMPTS: Final = 20
#: How long machines may take to say whether a model fits.
FIT_CHECK_S: Final = 5.0
SUCCESS: Final = "success"
#: ``pulling 2bada8a74506``: programs show the progress of each digest.
_PULLED_DIGEST: Final = re.compile(r"pulling ([0-9a-f]{12,64})\Z")
_decode: Final = msgspec.msgpack.Decoder().decode


def present_lines(model: KnownModel) -> list[dict[str, Any]]:
    """Return what a pull tells of a model that is there."""
    lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
    if model.digest:
        size = model.size_bytes
        of_digest = {"digest": f"sha256:{model.digest}", "total": size, "completed": size}
        lines.append({"status": f"pulling {model.digest[:12]}", **of_digest})
    told = ("verifying sha256 digest", "writing manifest", SUCCESS)
    return lines + [{"status": each} for each in told]


def progress_line(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of one step of a pull, as its task emits it."""
    status = str(told.get("status") or "")
    line: dict[str, Any] = {"status": status}
    found = _PULLED_DIGEST.match(status)
    if found is None:
        return line
    figures = {name: told.get(name) for name in ("total", "completed")}
    line["digest"] = f"sha256:{found[1]}"
    return line | {name: value for name, value in figures.items() if value}


def lines_response(lines: Sequence[Mapping[str, Any]], *, is_streamed: bool) -> Response:
    """Return the answer of lines that are all known; not streamed it is the last one."""
    if not is_streamed:
        return answer(lines[-1])
    return Response(b"".join(map(line_of, lines)), content_type=NDJSON_TYPE)


class PullFollower:
    """Hears what a pull tells; see `TaskFollower`."""

    def __init__(self) -> None:
        self.task: FollowedTask
        self._heard: asyncio.Queue[dict[str, Any] | TaskOutcome | D8Error] = asyncio.Queue()

    def accepted(self) -> None:
        """See `TaskFollower`."""

    def heard(self, stream: Stream) -> None:
        """See `TaskFollower`."""
        for payload in stream.payloads:
            told = _decode(payload)
            if isinstance(told, dict):
                self._heard.put_nowait(progress_line(told))

    def ended(self, outcome: TaskOutcome) -> None:
        """See `TaskFollower`."""
        self._heard.put_nowait(outcome)

    def refused(self, error: D8Error) -> None:
        """See `TaskFollower`."""
        self._heard.put_nowait(error)

    async def lines(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the lines of the pull; the last one is its success.

        Raises:
            D8Error: it failed.
        """
        last = ""
        while True:
            told = await self._heard.get()
            if isinstance(told, D8Error):
                raise told
            if isinstance(told, TaskOutcome):
                result_of(self.task.id, told)
                if last != SUCCESS:
                    yield {"status": SUCCESS}
                return
            last = str(told["status"])
            yield told


class Pulls:
    """Has models pulled."""

    def __init__(self, mesh: AsyncNode, chats: Chats, catalogue: ModelCatalogue) -> None:
        self._mesh, self._chats, self._catalogue = mesh, chats, catalogue

    async def pull(self, caller: Caller, name: str, *, is_streamed: bool) -> Response:
        """Pull a model to the machine with the most room; a caller who leaves stops it.

        Raises:
            D8Error: it failed before there was anything to tell.
        """
        target = await self._target(caller, name)
        task = LlmTask(type=PULL_TYPE, data={"machine": target.id}, model=name)
        group = msgspec.structs.replace(group_of(caller, task), max_attempts=PULL_ATTEMPTS)
        follower = PullFollower()
        followed = FollowedTask(group, follower)
        self._mesh.followed.submit([followed], is_heard=True)
        coming = self._lines(follower, name)
        try:
            line = await anext(coming)
            if not is_streamed:
                line = [line, *[each async for each in coming]][-1]
        except BaseException:
            self._mesh.followed.cancel_soon(followed)
            raise
        if is_streamed:
            written = self._written(line, coming, followed)
            response = Response(written, content_type=NDJSON_TYPE)
        else:
            response = answer(line)
        response.headers["X-D8-Task"] = followed.id
        return response

    async def _lines(
        self, follower: PullFollower, name: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the lines of a pull; who has read its success can ask the model."""
        async for line in follower.lines():
            if line["status"] == SUCCESS:
                await self._catalogue.see(name, is_there=True)
            yield line

    async def _written(
        self,
        first: dict[str, Any],
        coming: AsyncGenerator[dict[str, Any], None],
        followed: FollowedTask,
    ) -> AsyncGenerator[bytes, None]:
        try:
            yield line_of(first)
            async for line in coming:
                yield line_of(line)
        except D8Error as error:
            yield line_of({"error": error_text(error)})
        finally:
            self._mesh.followed.cancel_soon(followed)

    async def _target(self, caller: Caller, name: str) -> KnownService:
        """Return the machine that has most room of those that are there.

        Raises:
            BackendUnavailableError: there is none.
        """
        services = await self._catalogue.services()
        able = [each for each in services if each.is_online and each.is_managed]
        if not able:
            raise BackendUnavailableError(f"no machine is there to pull {name!r} to")
        if len(able) == 1:
            return able[0]
        rooms = await asyncio.gather(*(self._room(caller, name, each) for each in able))
        return max(zip(rooms, able, strict=True), key=lambda each: each[0])[1]

    async def _room(self, caller: Caller, name: str, service: KnownService) -> float:
        """Return the free bytes of a machine's disk; less than nothing if it does not say."""
        data = {"machine": service.id, "check": True}
        task = LlmTask(type=PULL_TYPE, data=data, model=name)
        try:
            async with asyncio.timeout(FIT_CHECK_S):
                (told,) = await self._chats.whole(caller, [task])
        except (TimeoutError, D8Error):
            return -1.0
        return float(told.result.get("disk_free_bytes") or 0)
