"""Batches on the disk, and as OpenAI's clients know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d8mesh.doors.batches import batch_folder
from d8mesh.doors.batches.batch_folder import BatchFolder, BatchStatus, LlmBatch, told
from d8mesh.errors import QueueFullError


def batch(**changes: Any) -> LlmBatch:
    fields: dict[str, Any] = {
        "id": BatchFolder.new_id(),
        "endpoint": "/v1/embeddings",
        "input_file_id": "file-in",
        "created_at": 1,
        "expires_at": 9,
        "completion_window": "24h",
        "priority": 3,
        "output_id": "file-out",
        "error_id": "file-err",
        "output_stays_s": 60,
    }
    return LlmBatch(**(fields | changes))


def folder(path: Path) -> BatchFolder:
    found = BatchFolder(path)
    found.open()
    return found


def kept(batches: BatchFolder, one: LlmBatch) -> LlmBatch:
    batches.write(one)
    batches.add(one)
    return one


def test_batches_are_there_after_a_restart_in_their_order(tmp_path: Path) -> None:
    batches = folder(tmp_path)
    second, first = kept(batches, batch(created_at=2)), kept(batches, batch(metadata={"a": "b"}))
    assert list(folder(tmp_path).listed()) == [first, second]


def test_a_status_has_its_time() -> None:
    one = batch()
    one.enter(BatchStatus.IN_PROGRESS, 12.9)
    assert (told(one)["status"], told(one)["in_progress_at"]) == ("in_progress", 12)


def test_files_are_told_when_they_are_there_and_have_lines() -> None:
    running = batch(status=BatchStatus.IN_PROGRESS, completed=1, failed=1)
    assert (told(running)["output_file_id"], told(running)["error_file_id"]) == (None, None)
    failed = batch(status=BatchStatus.COMPLETED, failed=2, total=2)
    assert (told(failed)["output_file_id"], told(failed)["error_file_id"]) == (None, "file-err")
    partial = batch(status=BatchStatus.CANCELLED, completed=1, failed=1)
    assert told(partial)["output_file_id"] == "file-out"


def test_what_is_wrong_with_a_file_is_told_as_a_list() -> None:
    fault = {"code": "empty_file", "line": None, "message": "m", "param": None}
    assert told(batch(errors=[fault]))["errors"] == {"object": "list", "data": [fault]}
    assert told(batch())["errors"] is None


def test_only_so_many_may_be_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_folder, "MAX_UNFINISHED", 1)
    batches = folder(tmp_path)
    kept(batches, batch(status=BatchStatus.COMPLETED))
    batches.check_room()
    kept(batches, batch())
    with pytest.raises(QueueFullError):
        batches.check_room()


def test_of_too_many_the_oldest_finished_one_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_folder, "MAX_BATCHES", 2)
    batches = folder(tmp_path)
    running = kept(batches, batch())
    kept(batches, batch(status=BatchStatus.COMPLETED))
    last = kept(batches, batch(status=BatchStatus.COMPLETED, created_at=2))
    assert list(batches.listed()) == [running, last]
    assert list(folder(tmp_path).listed()) == [running, last]


def test_files_of_a_batch_are_in_use_until_it_is_finished(tmp_path: Path) -> None:
    batches = folder(tmp_path)
    one = kept(batches, batch())
    assert batches.uses("file-in")
    assert batches.uses("file-out")
    assert not batches.uses("file-other")
    one.enter(BatchStatus.COMPLETED, 1)
    assert not batches.uses("file-in")
