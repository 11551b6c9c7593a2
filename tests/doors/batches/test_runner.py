"""Batches on a real mesh, from the file to the answers, whatever happens between."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from d8mesh.doors.batches import runner
from d8mesh.doors.batches.batch_folder import BatchFolder, BatchStatus, LlmBatch
from d8mesh.doors.batches.record import AnswerRecord
from d8mesh.doors.batches.runner import BatchRunner
from d8mesh.doors.batches.stored_files import FileFolder, StoredFile
from d8mesh.errors import DiskLowError
from tests.doors.batches.asked_lines import SaidMesh, SaidRequests, said_mesh
from tests.nodes.loops import run, until

ENDPOINT = "/v1/embeddings"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[SaidMesh]:
    with said_mesh(tmp_path) as found:
        yield found


class Batches:
    """A runner on the folder of a test."""

    def __init__(self, mesh: SaidMesh, folder: Path) -> None:
        self.requests = SaidRequests()
        self.files = FileFolder(folder / "files", 0)
        self.batches = BatchFolder(folder / "batches")
        self.node = mesh.node()
        self.runner = BatchRunner(
            self.node, self.files, self.batches, self.requests, lambda batch: ""
        )

    async def make(self, rows: Sequence[str], window_s: int = 1000) -> LlmBatch:
        given = StoredFile(
            id=self.files.new_id(), size_bytes=1, created_at=1, name="in.jsonl", purpose="batch"
        )
        self.files.path(given.id).write_text("\n".join(rows) + "\n", "utf-8")
        self.files.write_note(given)
        self.files.add(given)
        now_at = int(time.time())
        batch = LlmBatch(
            id=self.batches.new_id(),
            endpoint=ENDPOINT,
            input_file_id=given.id,
            created_at=now_at,
            expires_at=now_at + window_s,
            completion_window="24h",
            priority=3,
            output_id=self.files.new_id(),
            error_id=self.files.new_id(),
            output_stays_s=60,
        )
        await self.runner.add(batch)
        return batch

    def lines(self, file_id: str) -> dict[str, Any]:
        path = self.files.path(file_id)
        rows = [json.loads(row) for row in path.read_text("utf-8").splitlines()]
        found = {row["custom_id"]: row for row in rows}
        assert len(found) == len(rows)
        return found


@asynccontextmanager
async def batches_in(mesh: SaidMesh, folder: Path) -> Any:
    found = Batches(mesh, folder)
    await found.runner.start()
    try:
        yield found
    finally:
        await found.runner.close()
        await found.node.close(5.0)


def row(number: int, **body: Any) -> str:
    line = {"custom_id": f"c{number}", "method": "POST", "url": ENDPOINT}
    return json.dumps(line | {"body": {"model": "m", **body}})


def rows(count: int) -> list[str]:
    return [row(number) for number in range(1, count + 1)]


async def cancelled(found: Batches) -> int:
    return int((await found.node.ask("stats", {}, 5.0))["tasks"]["cancelled"])


def in_batches(mesh: SaidMesh, folder: Path, program: Callable[[Batches], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        async with batches_in(mesh, folder) as found:
            return await program(found)

    return run(whole())


def test_a_batch_is_answered_line_by_line(mesh: SaidMesh, tmp_path: Path) -> None:
    async def program(found: Batches) -> None:
        given = [row(1), row(2, fails=True), "", row(4, refused=True), row(5)]
        batch = await found.make(given)
        assert batch.status is BatchStatus.VALIDATING
        await until(lambda: batch.is_final)
        assert (batch.status, batch.total, batch.completed, batch.failed) == (
            BatchStatus.COMPLETED,
            4,
            2,
            2,
        )
        assert batch.in_progress_at is not None
        assert batch.finalizing_at is not None
        good, bad = found.lines(batch.output_id), found.lines(batch.error_id)
        assert {name: each["response"]["body"]["said"] for name, each in good.items()} == {
            "c1": [1],
            "c5": [5],
        }
        assert bad.keys() == {"c2", "c4"}
        for file_id in (batch.output_id, batch.error_id):
            file = found.files.find(file_id)
            assert file is not None
            assert (file.purpose, file.size_bytes) == (
                "batch_output",
                found.files.path(file_id).stat().st_size,
            )
        assert sorted(found.requests.delivered_lines) == [1, 2, 4, 5]

    in_batches(mesh, tmp_path, program)


def test_a_file_with_faults_fails_and_asks_nothing(mesh: SaidMesh, tmp_path: Path) -> None:
    async def program(found: Batches) -> LlmBatch:
        batch = await found.make([row(1), "{", row(1)])
        await until(lambda: batch.is_final)
        return batch

    batch = in_batches(mesh, tmp_path, program)
    assert (batch.status, [fault["line"] for fault in batch.errors]) == (BatchStatus.FAILED, [2, 3])
    assert mesh.handler.asked == []


def test_a_cancelled_batch_keeps_what_was_answered(mesh: SaidMesh, tmp_path: Path) -> None:
    async def program(found: Batches) -> None:
        mesh.handler.go.clear()
        batch = await found.make(rows(300))
        await until(lambda: batch.asked_through == 300)
        await found.runner.cancel(batch)
        await until(lambda: cancelled(found))
        mesh.handler.go.set()
        await until(lambda: batch.is_final)
        assert batch.status is BatchStatus.CANCELLED
        assert batch.completed + batch.failed == batch.total == 300
        codes = {each["error"]["code"] for each in found.lines(batch.error_id).values()}
        assert codes == {"batch_cancelled"}
        assert len(mesh.handler.asked) < 300

    in_batches(mesh, tmp_path, program)


def test_a_batch_that_expires_says_so_of_what_was_not_answered(
    mesh: SaidMesh, tmp_path: Path
) -> None:
    async def program(found: Batches) -> None:
        mesh.handler.go.clear()
        batch = await found.make(rows(20), window_s=2)
        await until(lambda: batch.expired_at is not None)
        mesh.handler.go.set()
        await until(lambda: batch.is_final)
        assert batch.status is BatchStatus.EXPIRED
        assert batch.completed + batch.failed == 20
        codes = {each["error"]["code"] for each in found.lines(batch.error_id).values()}
        assert codes == {"batch_expired"}

    in_batches(mesh, tmp_path, program)


def test_the_next_runner_goes_on_and_no_line_is_asked_or_written_twice(
    mesh: SaidMesh, tmp_path: Path
) -> None:
    async def begin(found: Batches) -> None:
        batch = await found.make(rows(250))
        await until(lambda: batch.completed > 20)

    async def end(found: Batches) -> None:
        (batch,) = found.batches.listed()
        await until(lambda: batch.is_final)
        assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 250)
        assert found.lines(batch.output_id).keys() == {f"c{n}" for n in range(1, 251)}

    in_batches(mesh, tmp_path, begin)
    in_batches(mesh, tmp_path, end)
    assert sorted(mesh.handler.asked) == list(range(1, 251))


def test_a_batch_cancelled_before_an_end_is_cancelled_after_it(
    mesh: SaidMesh, tmp_path: Path
) -> None:
    async def begin(found: Batches) -> None:
        mesh.handler.go.clear()
        batch = await found.make(rows(100))
        await until(lambda: batch.asked_through == 100)

    async def end(found: Batches) -> None:
        (batch,) = found.batches.listed()
        mesh.handler.go.set()
        await until(lambda: batch.is_final)
        assert batch.status is BatchStatus.CANCELLED
        assert batch.completed + batch.failed == 100

    in_batches(mesh, tmp_path, begin)
    between = BatchFolder(tmp_path / "batches")
    between.open()
    (batch,) = between.listed()
    batch.enter(BatchStatus.CANCELLING, time.time())
    between.write(batch)
    in_batches(mesh, tmp_path, end)


def test_a_full_disk_is_waited_for(
    mesh: SaidMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FULL_DISK_S", 0.01)
    append, refusals = AnswerRecord.append, [0]

    def full_at_first(record: Any, lines: Any) -> None:
        refusals[0] += 1
        if refusals[0] < 4:
            raise DiskLowError("No space left on device")
        append(record, lines)

    monkeypatch.setattr(AnswerRecord, "append", full_at_first)

    async def program(found: Batches) -> LlmBatch:
        batch = await found.make(rows(5))
        await until(lambda: batch.is_final)
        return batch

    batch = in_batches(mesh, tmp_path, program)
    assert (batch.completed, refusals[0] >= 4) == (5, True)


def test_a_batch_that_waits_for_its_turn_is_cancelled_at_once(
    mesh: SaidMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BATCHES_AT_ONCE", 1)

    async def program(found: Batches) -> None:
        mesh.handler.go.clear()
        first = await found.make(rows(30))
        await until(lambda: first.asked_through)
        second = await found.make(rows(5))
        await until(lambda: second.status is BatchStatus.IN_PROGRESS)
        assert not second.asked_through
        await found.runner.cancel(second)
        await until(lambda: second.is_final)
        third = await found.make(rows(5))
        mesh.handler.go.set()
        await until(lambda: first.is_final and third.is_final)
        assert (first.completed, third.completed) == (30, 5)

    in_batches(mesh, tmp_path, program)
