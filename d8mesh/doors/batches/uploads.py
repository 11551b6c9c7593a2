"""A file that comes in: from the form to the disk, as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

from d8mesh.doors.batches.stored_files import FileFolder, StoredFile
from d8mesh.errors import DiskLowError, InvalidTaskError
from d8mesh.http.answers import Refusal
from d8mesh.http.multipart import FormField, form_of

#: Of any file, and of one that a batch is made of, as OpenAI has it.
MAX_UPLOAD_BYTES: Final = 512 * 1024 * 1024
MAX_BATCH_BYTES: Final = 200 * 1024 * 1024
#: What stands around a file in its form.
FORM_BYTES: Final = 64 * 1024
#: Written at once.
WRITTEN_BYTES: Final = 1024 * 1024
BATCH: Final = "batch"
PURPOSES: Final = ("assistants", BATCH, "evals", "fine-tune", "user_data", "vision")
MAX_FILE_NAME_CHARS: Final = 255
MAX_FIELD_BYTES: Final = 1024
#: How long files stay may be chosen within this.
LEAST_STAY_S: Final = 3600
MOST_STAY_S: Final = 30 * 86_400
_DIGITS_ONLY: Final = re.compile(r"[0-9]{1,9}")


class Upload:
    """One file on its way to the disk.

    Raises, from every method:
        InvalidTaskError, Refusal: it is not what it must be.
        DiskLowError: it does not fit.
    """

    def __init__(self, files: FileFolder) -> None:
        self._files, self._id = files, files.new_id()
        self._path = files.path(self._id)
        self._file: BinaryIO | None = None
        self._name = ""
        self._size_bytes = 0
        self._fields: dict[str, bytes] = {}
        self._held = bytearray()

    async def take(self, parts: AsyncIterator[bytes], boundary: bytes) -> StoredFile:
        """Read the whole form; return the file, which is on the disk then."""
        try:
            await self._read(parts, boundary)
            file = self._checked()
            await asyncio.to_thread(self._finish)
            await asyncio.to_thread(self._files.write_note, file)
        except BaseException:
            self._drop()
            raise
        self._files.add(file)
        return file

    async def _read(self, parts: AsyncIterator[bytes], boundary: bytes) -> None:
        field = FormField("", None)
        async for each in form_of(parts, boundary):
            if isinstance(each, FormField):
                field = each
                if field.name == "file" and self._file is None:
                    self._begin(field)
                elif field.name in self._fields or field.name == "file":
                    raise InvalidTaskError(f"{field.name[:60]}: given twice")
                else:
                    self._fields[field.name] = b""
            elif field.name == "file":
                await self._add(each)
            else:
                self._fields[field.name] += each
                if len(self._fields[field.name]) > MAX_FIELD_BYTES:
                    raise InvalidTaskError(f"{field.name[:60]}: expected a short text")

    def _begin(self, field: FormField) -> None:
        self._name = (field.file_name or "").replace("\\", "/").rpartition("/")[2]
        if not self._name or len(self._name) > MAX_FILE_NAME_CHARS or not self._name.isprintable():
            raise InvalidTaskError(
                f"file: expected a file name of 1 to {MAX_FILE_NAME_CHARS} characters"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        except OSError as error:
            raise DiskLowError(f"the file cannot be written ({error.strerror})") from error

    async def _add(self, content: bytes) -> None:
        self._size_bytes += len(content)
        if self._size_bytes > MAX_UPLOAD_BYTES:
            raise _too_large(MAX_UPLOAD_BYTES)
        self._held += content
        if len(self._held) >= WRITTEN_BYTES:
            held, self._held = self._held, bytearray()
            self._files.check_room(len(held))
            await asyncio.to_thread(self._write, held)

    def _write(self, content: bytearray) -> None:
        if self._file is None:
            return
        view = memoryview(content)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise DiskLowError(f"the file cannot be written ({error.strerror})") from error

    def _finish(self) -> None:
        if self._file is None:
            return
        self._write(self._held)
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise DiskLowError(f"the file cannot be written ({error.strerror})") from error

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _checked(self) -> StoredFile:
        """Return what is known of the file; its fields may come before it and after it."""
        if self._file is None:
            raise InvalidTaskError("Missing field: file (a file with its name)")
        purpose = _text(self._fields.get("purpose", b""))
        if not purpose:
            raise InvalidTaskError("Missing field: purpose")
        if purpose not in PURPOSES:
            raise InvalidTaskError(f"purpose: expected one of {', '.join(PURPOSES)}")
        if purpose == BATCH:
            if not self._name.lower().endswith(".jsonl"):
                raise InvalidTaskError("file: Invalid file format for Batch API. Must be .jsonl")
            if self._size_bytes > MAX_BATCH_BYTES:
                raise _too_large(MAX_BATCH_BYTES)
        now_at = int(time.time())
        stays_s = self._stays_s() or (MOST_STAY_S if purpose == BATCH else None)
        return StoredFile(
            id=self._id,
            size_bytes=self._size_bytes,
            created_at=now_at,
            name=self._name,
            purpose=purpose,
            expires_at=None if stays_s is None else now_at + stays_s,
        )

    def _stays_s(self) -> int | None:
        anchor = _text(self._fields.get("expires_after[anchor]", b""))
        seconds = _text(self._fields.get("expires_after[seconds]", b""))
        if not anchor and not seconds:
            return None
        if anchor != "created_at":
            raise InvalidTaskError("expires_after[anchor]: expected created_at")
        if not _DIGITS_ONLY.fullmatch(seconds) or not LEAST_STAY_S <= int(seconds) <= MOST_STAY_S:
            bounds = f"{LEAST_STAY_S} to {MOST_STAY_S}"
            raise InvalidTaskError(f"expires_after[seconds]: expected seconds, {bounds}")
        return int(seconds)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace").strip()


def _too_large(limit: int) -> Refusal:
    return Refusal("http.too_large", f"the file is larger than {limit} bytes")
