"""What each call of ``/v1/files`` and ``/v1/batches`` takes and answers, for `/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from d8mesh.doors.batches.batch_folder import BatchStatus
from d8mesh.doors.batches.creation import (
    MAX_METADATA,
    MAX_METADATA_CHARS,
    MAX_METADATA_KEY_CHARS,
)
from d8mesh.doors.batches.uploads import LEAST_STAY_S, MOST_STAY_S
from d8mesh.http.described import BINARY, FORM, AboutCall, AboutCalls, HttpReply, json_of

ListOrder: TypeAlias = Literal["asc", "desc"]
#: Of a list, as OpenAI has it.
MAX_FILES_LISTED: Final = 10_000
MAX_BATCHES_LISTED: Final = 100
BATCHES_LISTED: Final = 20
BatchEndpoint: TypeAlias = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"
]
_MetadataKey: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_METADATA_KEY_CHARS)]
_MetadataValue: TypeAlias = Annotated[str, Meta(max_length=MAX_METADATA_CHARS)]


class ExpiryWanted(Struct):
    """How long the answers stay."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=LEAST_STAY_S, le=MOST_STAY_S)]


class BatchBody(Struct):
    """A batch that is wished for; `metadata.priority`: 1 to 10, as a text."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=MAX_METADATA_CHARS)]
    endpoint: BatchEndpoint
    #: a fortnight at most
    completion_window: Annotated[str, Meta(pattern="^(1[0-4]|[1-9])d$|^[1-9][0-9]{0,5}[smh]$")]
    metadata: (
        Annotated[dict[_MetadataKey, _MetadataValue], Meta(max_length=MAX_METADATA)] | None
    ) = None
    output_expires_after: ExpiryWanted | None = None


class FilesQuery(Struct):
    """Which files."""

    purpose: str = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_FILES_LISTED)] = MAX_FILES_LISTED
    order: ListOrder = "desc"
    after: str = ""


class BatchesQuery(Struct):
    """Which batches."""

    limit: Annotated[int, Meta(ge=1, le=MAX_BATCHES_LISTED)] = BATCHES_LISTED
    order: ListOrder = "desc"
    after: str = ""


class FileTold(Struct):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    expires_at: int | UnsetType = UNSET


class FilesTold(Struct):
    """Some of them."""

    object: Literal["list"]
    data: list[FileTold]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeletedTold(Struct):
    """It is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


class RequestCounts(Struct):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class BatchTold(Struct):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    model: str | UnsetType = UNSET
    usage: dict[str, Any] | UnsetType = UNSET


class BatchesTold(Struct):
    """Some of them."""

    object: Literal["list"]
    data: list[BatchTold]
    first_id: str | None
    last_id: str | None
    has_more: bool


BATCHES_CALLS: Final[AboutCalls] = {
    "POST /v1/files": AboutCall(
        what="Keep a file: the form's `file`, with its `purpose`.",
        media=FORM,
        answers=json_of(FileTold),
    ),
    "GET /v1/files": AboutCall(what="The files.", query=FilesQuery, answers=json_of(FilesTold)),
    "GET /v1/files/<file_id>": AboutCall(what="A file.", answers=json_of(FileTold)),
    "DELETE /v1/files/<file_id>": AboutCall(what="Remove it.", answers=json_of(FileDeletedTold)),
    "GET /v1/files/<file_id>/content": AboutCall(
        what="What is in it.", answers=(HttpReply(200, None, BINARY),)
    ),
    "POST /v1/batches": AboutCall(
        what="Have the requests of a file answered.", body=BatchBody, answers=json_of(BatchTold)
    ),
    "GET /v1/batches": AboutCall(
        what="The batches.", query=BatchesQuery, answers=json_of(BatchesTold)
    ),
    "GET /v1/batches/<batch_id>": AboutCall(what="A batch.", answers=json_of(BatchTold)),
    "POST /v1/batches/<batch_id>/cancel": AboutCall(
        what="End it before its time.", answers=json_of(BatchTold)
    ),
}
