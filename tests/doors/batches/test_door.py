"""``/v1/files`` and ``/v1/batches`` over a real broker, without sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.doors.batches import door
from d8mesh.doors.batches.batch_folder import BatchFolder
from d8mesh.doors.batches.door import batches_door
from d8mesh.doors.batches.runner import BatchRunner
from d8mesh.doors.batches.stored_files import FileFolder
from d8mesh.doors.openai.described import OpenAiProblem
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from d8mesh.nodes.client.aio.node import AsyncNode
from tests.doors.batches.asked_lines import SaidMesh, SaidRequests, said_mesh
from tests.http.calls import Answer, LoopThread, call
from tests.nodes.mesh import until

ENDPOINT = "/v1/embeddings"
FORM = {"content-type": "multipart/form-data; boundary=b0"}


class Calls:
    """Calls the door."""

    node: AsyncNode
    runner: BatchRunner
    application: Application

    def __init__(self, mesh: SaidMesh, folder: Path, reserve_bytes: int = 0) -> None:
        self.mesh = mesh
        self.loop = LoopThread()
        self.loop.run(self._begin(folder, reserve_bytes))

    async def _begin(self, folder: Path, reserve_bytes: int) -> None:
        self.node = self.mesh.node()
        files = FileFolder(folder / "files", reserve_bytes)
        batches = BatchFolder(folder / "batches")
        self.runner = BatchRunner(self.node, files, batches, SaidRequests(), lambda batch: "")
        await self.runner.start()
        doors = [batches_door(self.runner, openai_problem, OpenAiProblem)]
        self.application = Application(doors, Guard(), Rejections())

    async def _end(self) -> None:
        await self.runner.close()
        await self.node.close(5.0)

    def close(self) -> None:
        self.loop.run(self._end())
        self.loop.close()

    def call(self, method: str, path: str, body: Any = b"", **more: Any) -> Answer:
        return self.loop.run(call(self.application, method, path, body=body, **more))

    def json(self, method: str, path: str, body: Any = b"", **more: Any) -> Any:
        answer = self.call(method, path, body, **more)
        assert answer.status_code == 200, answer.text
        return answer.json

    def upload(self, content: bytes, name: str = "in.jsonl") -> Any:
        return self.json("POST", "/v1/files", form(content, name), headers=FORM)

    def error(self, method: str, path: str, body: Any = b"", **more: Any) -> tuple[int, Any]:
        answer = self.call(method, path, body, **more)
        return answer.status_code, answer.json["error"]


def form(content: bytes, name: str = "in.jsonl", purpose: str = "batch") -> bytes:
    head = 'Content-Disposition: form-data; name="{}"'
    return (
        f"--b0\r\n{head.format('purpose')}\r\n\r\n{purpose}\r\n--b0\r\n{head.format('file')}; "
        f'filename="{name}"\r\n\r\n'
    ).encode() + b"%b\r\n--b0--\r\n" % content


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[SaidMesh]:
    with said_mesh(tmp_path) as found:
        yield found


@pytest.fixture
def calls(mesh: SaidMesh, tmp_path: Path) -> Iterator[Calls]:
    found = Calls(mesh, tmp_path)
    yield found
    found.close()


def rows(count: int) -> bytes:
    line = {"method": "POST", "url": ENDPOINT, "body": {"model": "m"}}
    return b"".join(
        json.dumps({"custom_id": f"c{n}"} | line).encode() + b"\n" for n in range(count)
    )


def made(calls: Calls, file_id: str, **more: Any) -> Any:
    body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    return calls.json("POST", "/v1/batches", body | more)


def test_a_file_comes_is_listed_read_and_deleted(calls: Calls) -> None:
    content = b"one\r\ntwo\0" * 100_000
    file = calls.upload(content)
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(content), "in.jsonl")
    assert (file["purpose"], file["status"]) == ("batch", "processed")
    assert calls.json("GET", f"/v1/files/{file['id']}") == file
    assert calls.call("GET", f"/v1/files/{file['id']}/content").data == content
    listed = calls.json("GET", "/v1/files")
    assert (listed["data"], listed["has_more"], listed["first_id"]) == ([file], False, file["id"])
    assert calls.json("DELETE", f"/v1/files/{file['id']}")["deleted"] is True
    status, error = calls.error("GET", f"/v1/files/{file['id']}")
    assert (status, error["type"]) == (404, "invalid_request_error")


def test_files_are_listed_in_pages_the_newest_first(calls: Calls) -> None:
    ids = [calls.upload(b"x")["id"] for _ in range(3)]
    newest = calls.json("GET", "/v1/files?limit=2")
    assert ([each["id"] for each in newest["data"]], newest["has_more"]) == (ids[:0:-1], True)
    rest = calls.json("GET", f"/v1/files?limit=2&after={newest['last_id']}")
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert calls.json("GET", "/v1/files?order=asc")["first_id"] == ids[0]
    assert calls.json("GET", "/v1/files?purpose=vision")["data"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "after=file-x"])
def test_a_wrong_query_is_refused(calls: Calls, query: str) -> None:
    assert calls.error("GET", f"/v1/files?{query}")[0] == 400


def test_a_batch_runs_and_its_answers_are_a_file(calls: Calls) -> None:
    file = calls.upload(rows(5))
    batch = made(calls, file["id"], metadata={"a": "b"})
    assert (batch["object"], batch["status"], batch["endpoint"]) == (
        "batch",
        "validating",
        ENDPOINT,
    )
    path = f"/v1/batches/{batch['id']}"
    until(lambda: calls.json("GET", path)["status"] == "completed")
    done = calls.json("GET", path)
    assert done["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert (done["error_file_id"], done["metadata"]) == (None, {"a": "b"})
    answers = calls.call("GET", f"/v1/files/{done['output_file_id']}/content").text.splitlines()
    assert {json.loads(each)["custom_id"] for each in answers} == {f"c{n}" for n in range(5)}
    listed = calls.json("GET", "/v1/batches")
    assert [each["id"] for each in listed["data"]] == [batch["id"]]
    assert calls.json("GET", "/v1/files?purpose=batch_output")["data"][0]["bytes"] > 0


def test_a_batch_is_cancelled_and_its_file_is_kept_until_it_is(calls: Calls) -> None:
    calls.mesh.handler.go.clear()
    file = calls.upload(rows(30))
    path = f"/v1/batches/{made(calls, file['id'])['id']}"
    assert calls.error("DELETE", f"/v1/files/{file['id']}")[0] == 400
    cancelled = calls.json("POST", f"{path}/cancel")
    assert cancelled["status"] in ("cancelling", "cancelled")
    calls.mesh.handler.go.set()
    until(lambda: calls.json("GET", path)["status"] == "cancelled")
    assert calls.error("POST", f"{path}/cancel")[0] == 400
    assert calls.json("DELETE", f"/v1/files/{file['id']}")["deleted"] is True


def test_a_batch_needs_a_file_that_is_there_and_for_batches(calls: Calls) -> None:
    body = {"input_file_id": "file-x", "endpoint": ENDPOINT, "completion_window": "24h"}
    status, error = calls.error("POST", "/v1/batches", body)
    assert (status, error["param"]) == (400, "input_file_id")
    other = calls.json("POST", "/v1/files", form(b"x", "a.png", "vision"), headers=FORM)
    assert calls.error("POST", "/v1/batches", body | {"input_file_id": other["id"]})[0] == 400
    assert calls.error("GET", "/v1/batches/batch_x")[0] == 404


def test_an_upload_that_is_no_form_is_refused(calls: Calls) -> None:
    assert calls.error("POST", "/v1/files", {"purpose": "batch"})[0] == 415
    status, error = calls.error("POST", "/v1/files", form(b"x", "in.txt"), headers=FORM)
    assert (status, "Must be .jsonl" in error["message"]) == (400, True)


def test_a_file_that_does_not_fit_on_the_disk_is_refused_in_openais_form(
    mesh: SaidMesh, tmp_path: Path
) -> None:
    calls = Calls(mesh, tmp_path, reserve_bytes=2**60)
    try:
        status, error = calls.error("POST", "/v1/files", form(b"x"), headers=FORM)
        assert (status, error["code"]) == (507, "disk.low")
    finally:
        calls.close()


def test_a_file_that_is_larger_than_allowed_is_refused(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.doors.batches.uploads.MAX_BATCH_BYTES", 10)
    status, error = calls.error("POST", "/v1/files", form(b"x" * 20), headers=FORM)
    assert (status, error["type"]) == (413, "invalid_request_error")


def test_a_large_file_is_sent_in_parts(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SENT_BYTES", 10)
    content = bytes(range(256)) * 2
    file = calls.upload(content)
    assert calls.call("GET", f"/v1/files/{file['id']}/content").data == content
