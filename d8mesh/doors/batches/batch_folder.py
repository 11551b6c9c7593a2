"""Batches on the disk: each is a small file, rewritten whole when its state changes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from d8mesh.doors.batches.stored_files import write_durably
from d8mesh.errors import QueueFullError
from d8mesh.private import make_folder

#: Batches that are known at a time; the oldest finished ones are forgotten first.
MAX_BATCHES: Final = 2000
#: Of them those that are not finished.
MAX_UNFINISHED: Final = 200
_BATCH_PREFIX: Final = "batch_"


class BatchStatus(StrEnum):
    """How far a batch is."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


FINAL_STATUSES: Final = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class LlmBatch(msgspec.Struct, kw_only=True):
    """One batch. Times are Unix seconds."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    completion_window: str
    metadata: dict[str, str] | None = None
    priority: int
    #: who asked for it: address and program
    address: str = ""
    program: str = ""
    #: the id of the access token that they have shown; "" for none
    token: str = ""
    status: BatchStatus = BatchStatus.VALIDATING
    model: str = ""
    errors: list[dict[str, Any]] = []
    #: where what is answered is written, from the first line on
    output_id: str
    error_id: str
    #: how long those stay, once they are there
    output_stays_s: int
    #: requests in the input, and the number of its last line
    total: int = 0
    last_line: int = 0
    #: lines up to this one may be tasks of the mesh
    asked_through: int = 0
    completed: int = 0
    failed: int = 0
    #: what `TokenCounts.told` says; None: nothing was answered
    usage: dict[str, Any] | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def run(self) -> str:
        """The digits of its id."""
        return self.id.removeprefix(_BATCH_PREFIX)

    @property
    def is_final(self) -> bool:
        """True if nothing changes any more."""
        return self.status in FINAL_STATUSES

    def enter(self, status: BatchStatus, at: float) -> None:
        """Note that it has a new status, and since when."""
        self.status = status
        if status is not BatchStatus.VALIDATING:
            setattr(self, f"{status}_at", int(at))


def told(batch: LlmBatch) -> dict[str, Any]:
    """Return a batch as OpenAI's clients know it."""
    is_over = batch.is_final and batch.status is not BatchStatus.FAILED
    faults = {"object": "list", "data": batch.errors} if batch.errors else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        **({"model": batch.model} if batch.model else {}),
        "errors": faults,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": str(batch.status),
        "output_file_id": batch.output_id if is_over and batch.completed else None,
        "error_file_id": batch.error_id if is_over and batch.failed else None,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        **({"usage": batch.usage} if batch.usage else {}),
        "metadata": batch.metadata,
    }


class BatchFolder:
    """The batches of one folder, all of them in memory too.

    Thread: the index is the loop's; `write` may run on any.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: in the order of their making
        self._batches: dict[str, LlmBatch] = {}

    def open(self) -> None:
        """Read what is there."""
        with contextlib.suppress(OSError):  # who makes a batch is told why that fails
            make_folder(self._folder)
        found: list[LlmBatch] = []
        for path in self._folder.glob(f"{_BATCH_PREFIX}*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=LlmBatch))
        found.sort(key=lambda each: (each.created_at, each.id))
        self._batches = {each.id: each for each in found}

    @staticmethod
    def new_id() -> str:
        """Return an id that is not in use."""
        return f"{_BATCH_PREFIX}{secrets.token_hex(12)}"

    def find(self, batch_id: str) -> LlmBatch | None:
        """Return a batch; None: there is none of this id."""
        return self._batches.get(batch_id)

    def listed(self) -> Iterator[LlmBatch]:
        """Return all, the oldest first."""
        return iter(list(self._batches.values()))

    def check_room(self) -> None:
        """Make sure that there may be one more.

        Raises:
            QueueFullError: too many are not finished.
        """
        unfinished = sum(not each.is_final for each in self._batches.values())
        if unfinished >= MAX_UNFINISHED:
            raise QueueFullError(f"{unfinished} batches are not finished: wait for one of them")

    def write(self, batch: LlmBatch) -> None:
        """Have a batch on the disk as it is now.

        Raises:
            DiskLowError: it could not be written.
        """
        write_durably(self._folder / f"{batch.id}.json", msgspec.json.encode(batch))

    def add(self, batch: LlmBatch) -> None:
        """Show a batch, which is written; for one too many the oldest finished one is forgotten."""
        self._batches[batch.id] = batch
        if len(self._batches) > MAX_BATCHES:
            oldest = next((each for each in self._batches.values() if each.is_final), None)
            if oldest is not None:
                del self._batches[oldest.id]
                with contextlib.suppress(OSError):
                    (self._folder / f"{oldest.id}.json").unlink()

    def uses(self, file_id: str) -> bool:
        """Return whether a batch that is not finished reads or writes a file."""
        return any(
            file_id in (each.input_file_id, each.output_id, each.error_id)
            for each in self._batches.values()
            if not each.is_final
        )
