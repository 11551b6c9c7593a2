"""``/v1/files`` and ``/v1/batches``, as OpenAI's clients call them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from d8mesh.config import Config
from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.core.protocol.source import TaskSource
from d8mesh.doors.batches.answering import BatchRequests
from d8mesh.doors.batches.batch_folder import BatchFolder, LlmBatch, told
from d8mesh.doors.batches.creation import WantedBatch, wanted_batch
from d8mesh.doors.batches.described import (
    BATCHES_CALLS,
    BATCHES_LISTED,
    MAX_BATCHES_LISTED,
    MAX_FILES_LISTED,
)
from d8mesh.doors.batches.runner import BatchRunner
from d8mesh.doors.batches.stored_files import FileFolder, StoredFile
from d8mesh.doors.batches.uploads import BATCH, FORM_BYTES, MAX_UPLOAD_BYTES, Upload
from d8mesh.doors.llm.delivered import DeliveredAnswers
from d8mesh.doors.llm.spending import SpendsTokens, spend_nothing
from d8mesh.doors.llm.wanted import FindsModels
from d8mesh.doors.query import integer
from d8mesh.errors import D8Error, InvalidTaskError
from d8mesh.http.answers import Refusal, Response, answer
from d8mesh.http.multipart import boundary_of
from d8mesh.http.routes import Door, HttpRoute, Request, with_descriptions
from d8mesh.nodes.client.aio.node import AsyncNode

#: In the data folder; the door's name, too.
DOOR_FOLDER: Final = "batches"
#: Read and sent at once.
SENT_BYTES: Final = 256 * 1024
#: Longest id that is looked for; ours have thirty characters.
MAX_FILE_ID_CHARS: Final = 64
_CONTENT: Final = "application/octet-stream"
_Stored = TypeVar("_Stored", StoredFile, LlmBatch)


def batch_runner(
    config: Config, mesh: AsyncNode, models: FindsModels, spend: SpendsTokens = spend_nothing
) -> BatchRunner:
    """Return what runs the batches of this orchestrator, in its data folder.

    Args:
        spend: is told what was read and written for an access token.
    """
    folder = Path(config.data_dir) / DOOR_FOLDER
    reserve_bytes = config.disk_reserve_mb * 1_000_000
    delivered = DeliveredAnswers(mesh, keeps_all=config.keep_chats)
    return BatchRunner(
        mesh,
        FileFolder(folder / "files", reserve_bytes),
        BatchFolder(folder),
        BatchRequests(models, delivered, spend),
        lambda batch: TaskSource(DOOR_FOLDER, batch.address, batch.program).text(),
    )


def batches_door(
    runner: BatchRunner, problem: Callable[[D8Error | Refusal], Response], problem_kind: type
) -> Door:
    """Return the door.

    Args:
        problem: tells errors in OpenAI's form.
        problem_kind: the type of what that makes.
    """
    files, batches = FileCalls(runner), BatchCalls(runner)
    most = MAX_UPLOAD_BYTES + FORM_BYTES
    upload = HttpRoute(
        "/v1/files",
        files.upload,
        method="POST",
        takes=None,
        max_body_bytes=most,
        is_streamed=True,
        ends_with_caller=True,
    )
    routes = (
        upload,
        HttpRoute("/v1/files", files.listed),
        HttpRoute("/v1/files/<file_id>", files.shown),
        HttpRoute("/v1/files/<file_id>", files.deleted, method="DELETE", takes=None),
        HttpRoute("/v1/files/<file_id>/content", files.content),
        HttpRoute("/v1/batches", batches.create, wanted_batch, method="POST", takes=None),
        HttpRoute("/v1/batches", batches.listed),
        HttpRoute("/v1/batches/<batch_id>", batches.shown),
        HttpRoute("/v1/batches/<batch_id>/cancel", batches.cancel, method="POST", takes=None),
    )
    return Door(
        routes=with_descriptions(routes, BATCHES_CALLS),
        problem=problem,
        problem_kind=problem_kind,
        prefixes=("/v1/files", "/v1/batches"),
        scopes=frozenset({TokenScope.CHAT}),
    )


class FileCalls:
    """Answers ``/v1/files…``."""

    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self._files: FileFolder = runner.files

    async def upload(self, request: Request) -> Response:
        """``POST /v1/files``"""
        boundary = boundary_of(request.fields.get("content-type", ""))
        length = request.fields.get("content-length", "0")
        self._files.check_room(int(length) if length.isdigit() else 0)
        return answer(_file_body(await Upload(self._files).take(request.parts, boundary)))

    async def listed(self, request: Request) -> Response:
        """``GET /v1/files``"""
        purpose = request.args.get("purpose", "")
        found = [each for each in self._files.listed() if purpose in ("", each.purpose)]
        page, has_more = _page(request, found, default=MAX_FILES_LISTED, most=MAX_FILES_LISTED)
        return answer(_list_body([_file_body(each) for each in page], has_more=has_more))

    async def shown(self, request: Request, file_id: str) -> Response:
        """``GET /v1/files/{id}``"""
        return answer(_file_body(self._find(file_id)))

    async def deleted(self, request: Request, file_id: str) -> Response:
        """``DELETE /v1/files/{id}``"""
        file = self._find(file_id)
        if self._runner.batches.uses(file.id):
            raise InvalidTaskError(f"file_id: a batch that is not finished uses {file.id}")
        self._files.remove(file.id)
        return answer({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request, file_id: str) -> Response:
        """``GET /v1/files/{id}/content``"""
        path = self._files.path(self._find(file_id).id)
        if not path.is_file():
            raise _no_file(file_id)
        return Response(_parts_of(path), content_type=_CONTENT)

    def _find(self, file_id: str) -> StoredFile:
        file = self._files.find(file_id[:MAX_FILE_ID_CHARS])
        if file is None:
            raise _no_file(file_id)
        return file


class BatchCalls:
    """Answers ``/v1/batches…``."""

    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self._batches: BatchFolder = runner.batches

    async def create(self, request: Request) -> Response:
        """``POST /v1/batches``"""
        wanted: WantedBatch = request.value or wanted_batch(request.body)
        file = self._runner.files.find(wanted.input_file_id[:MAX_FILE_ID_CHARS])
        if file is None:
            raise InvalidTaskError(f"input_file_id: no such file: {wanted.input_file_id[:60]!r}")
        if file.purpose != BATCH:
            raise InvalidTaskError("input_file_id: expected a file of the purpose batch")
        self._batches.check_room()
        self._runner.files.check_room(file.size_bytes)
        now_at = int(time.time())
        batch = LlmBatch(
            id=self._batches.new_id(),
            endpoint=wanted.endpoint,
            input_file_id=file.id,
            created_at=now_at,
            expires_at=now_at + wanted.window_s,
            completion_window=wanted.window,
            metadata=wanted.metadata,
            priority=wanted.priority,
            address=request.remote_addr or "",
            program=request.fields.get("user-agent", ""),
            token=request.access.token,
            output_id=self._runner.files.new_id(),
            error_id=self._runner.files.new_id(),
            output_stays_s=wanted.output_stays_s,
        )
        body = told(batch)
        await self._runner.add(batch)
        return answer(body)

    async def listed(self, request: Request) -> Response:
        """``GET /v1/batches``"""
        page, has_more = _page(
            request, self._batches.listed(), default=BATCHES_LISTED, most=MAX_BATCHES_LISTED
        )
        return answer(_list_body([told(each) for each in page], has_more=has_more))

    async def shown(self, request: Request, batch_id: str) -> Response:
        """``GET /v1/batches/{id}``"""
        return answer(told(self._find(batch_id)))

    async def cancel(self, request: Request, batch_id: str) -> Response:
        """``POST /v1/batches/{id}/cancel``"""
        batch = self._find(batch_id)
        if batch.is_final:
            raise InvalidTaskError(f"batch_id: {batch.id} is {batch.status} already")
        await self._runner.cancel(batch)
        return answer(told(batch))

    def _find(self, batch_id: str) -> LlmBatch:
        batch = self._batches.find(batch_id[:MAX_FILE_ID_CHARS])
        if batch is None:
            raise Refusal("http.not_found", f"No batch found with id '{batch_id[:60]}'.")
        return batch


async def _parts_of(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a file in parts, read beside the loop."""
    stream = await asyncio.to_thread(path.open, "rb")
    try:
        while part := await asyncio.to_thread(stream.read, SENT_BYTES):
            yield part
    finally:
        stream.close()


def _page(
    request: Request, found: Iterable[_Stored], *, default: int, most: int
) -> tuple[list[_Stored], bool]:
    """Return a page of a list, the newest first unless ``order=asc``, and whether there is more."""
    limit = integer(request.args, "limit", default=default, most=most)
    order, after = request.args.get("order", "desc"), request.args.get("after", "")
    if order not in ("asc", "desc"):
        raise InvalidTaskError("order: expected asc or desc")
    rows = list(found)
    if order == "desc":
        rows.reverse()
    if after:
        at = next((n for n, each in enumerate(rows) if each.id == after), None)
        if at is None:
            raise InvalidTaskError(f"after: there is no {after[:60]!r} in the list")
        rows = rows[at + 1 :]
    return rows[:limit], len(rows) > limit


def _list_body(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _file_body(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        **({} if file.expires_at is None else {"expires_at": file.expires_at}),
    }


def _no_file(file_id: str) -> Refusal:
    return Refusal("http.not_found", f"No such File object: {file_id[:60]}")
