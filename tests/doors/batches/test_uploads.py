"""A file in a form goes to the disk as it comes, or leaves nothing there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from d8mesh.doors.batches import uploads
from d8mesh.doors.batches.stored_files import FileFolder, StoredFile
from d8mesh.doors.batches.uploads import Upload
from d8mesh.errors import InvalidTaskError
from d8mesh.http.answers import Refusal

BOUNDARY = b"b0"


def field(name: str, value: str) -> bytes:
    head = f'--b0\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
    return head.encode()


def file_field(name: str, content: bytes) -> bytes:
    head = f'--b0\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--b0--\r\n"


def uploaded(folder: Path, body: bytes, *, part: int = 7) -> tuple[FileFolder, StoredFile]:
    files = FileFolder(folder, 0)
    files.open(())

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), part):
            yield body[at : at + part]

    return files, asyncio.run(Upload(files).take(parts(), BOUNDARY))


@pytest.mark.parametrize("part", [1, 7, 100_000])
def test_a_file_is_stored_in_whatever_parts_it_comes(tmp_path: Path, part: int) -> None:
    content = b'{"a": 1}\n\r\n--b1\r\n--b\n'
    body = field("purpose", "batch") + file_field("in.jsonl", content) + END
    files, file = uploaded(tmp_path, body, part=part)
    assert files.path(file.id).read_bytes() == content
    assert (file.name, file.purpose, file.size_bytes) == ("in.jsonl", "batch", len(content))
    assert file.expires_at == file.created_at + 30 * 86_400
    again = FileFolder(tmp_path, 0)
    again.open(())
    assert again.find(file.id) == file


def test_fields_may_come_after_the_file(tmp_path: Path) -> None:
    later = field("purpose", "user_data") + field("expires_after[anchor]", "created_at")
    later += field("expires_after[seconds]", "3600")
    _, file = uploaded(tmp_path, file_field("C:\\\\x\\\\a.bin", b"\0\xff") + later + END)
    assert (file.name, file.expires_at) == ("a.bin", file.created_at + 3600)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (field("purpose", "batch") + END, "Missing field: file"),
        (file_field("a.jsonl", b"x") + END, "Missing field: purpose"),
        (field("purpose", "evil") + file_field("a", b"x") + END, "purpose: expected"),
        (field("purpose", "batch") + file_field("a.txt", b"x") + END, "Must be .jsonl"),
        (field("purpose", "batch") * 2 + END, "given twice"),
        (file_field("a", b"x") * 2 + END, "given twice"),
        (field("purpose", "x" * 2000) + END, "a short text"),
        (field("expires_after[seconds]", "5"), "whole multipart"),
        (
            field("purpose", "batch")
            + field("expires_after[seconds]", "5")
            + file_field("a.jsonl", b"")
            + END,
            "anchor",
        ),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(tmp_path: Path, body: bytes, told: str) -> None:
    with pytest.raises((InvalidTaskError, Refusal), match=told):
        uploaded(tmp_path, body)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_file_has_its_own_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_BATCH_BYTES", 10)
    body = file_field("a.jsonl", b"x" * 11) + field("purpose", "batch") + END
    with pytest.raises(Refusal, match="larger than 10 bytes"):
        uploaded(tmp_path, body)
    assert list(tmp_path.iterdir()) == []


def test_a_caller_who_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    files = FileFolder(tmp_path, 0)
    files.open(())

    async def parts() -> AsyncIterator[bytes]:
        yield file_field("a.jsonl", b"x" * 100)[:-50]
        raise EOFError

    with pytest.raises(EOFError):
        asyncio.run(Upload(files).take(parts(), BOUNDARY))
    assert list(tmp_path.iterdir()) == []
