"""Lines that ask a handler of a test, and a mesh with one, for the tests of batches."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from d8mesh.core.protocol.messages import COMPLETED_STATE
from d8mesh.doors.batches.answer_lines import AnswerLine, answered
from d8mesh.doors.batches.asking import AskedLine, EndedLine, LineGroup
from d8mesh.doors.batches.cutting import groups_of
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.errors import InvalidTaskError
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.results import decoded
from tests.nodes.mesh import Mesh, mesh_in

#: The type of the tasks that lines ask for.
SAY = "say"


class Handler:
    """Answers with what it is asked; `hold` makes it wait for `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.asked: list[int] = []

    def say(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.go.wait(30.0)
        self.asked.append(data["n"])
        if data.get("fails"):
            return {"success": False, "error": "it was to fail"}
        return {"success": True, "output": data["n"]}


class SaidMesh:
    """A broker, a worker with the handler, and how to reach them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.handler = mesh, Handler()
        self.port = mesh.broker()
        worker = mesh.worker(self.port, slots=8)
        worker.task(SAY)(self.handler.say)
        mesh.run(worker)

    def node(self) -> AsyncNode:
        endpoint = self.mesh.endpoint(self.port)
        return AsyncNode(self.mesh.config(), endpoint=endpoint, url=None)


@contextmanager
def said_mesh(folder: Path) -> Iterator[SaidMesh]:
    with mesh_in(folder) as mesh:
        found = SaidMesh(mesh)
        try:
            yield found
        finally:
            found.handler.go.set()


def asked(number: int, raw: bytes = b"") -> AskedLine:
    body = json.loads(raw) if raw else {}
    if body.get("refused"):
        return AskedLine(number, str(number), error=InvalidTaskError("refused: by this test"))
    data = {"n": number, **body}
    tasks = [LlmTask(type=SAY, data=data, model="m") for _ in range(body.get("tasks", 1))]
    return AskedLine(number, str(number), tasks)


def cut(
    rows: Iterable[tuple[int, bytes]], key: str = "run", wanted: Sequence[int] | None = None
) -> Iterator[LineGroup]:
    return groups_of(rows, key, lambda n: wanted is None or n in wanted, asked)


async def each(groups: Iterable[LineGroup]) -> AsyncIterator[LineGroup]:
    for group in groups:
        yield group


class SaidRequests:
    """What `runner` needs to know of the requests in these tests."""

    def __init__(self) -> None:
        self.delivered_lines: list[int] = []
        #: what was counted for which access token
        self.spendings: list[tuple[str, int, int]] = []

    def asked(self, endpoint: str, number: int, custom_id: str, body: object) -> AskedLine:
        return replace(asked(number, json.dumps(body).encode()), custom_id=custom_id)

    async def answered(self, run: str, lines: Sequence[EndedLine]) -> list[AnswerLine]:
        return [_line(run, line) for line in lines]

    def spent(self, token: str, *, read: int, written: int) -> None:
        self.spendings.append((token, read, written))

    async def delivered(self, lines: Sequence[EndedLine]) -> None:
        self.delivered_lines += [line.number for line in lines]


def _line(run: str, line: EndedLine) -> AnswerLine:
    results = [decoded(end.outcome.payload) for end in line.ends]
    is_good = all(end.outcome.state == COMPLETED_STATE for end in line.ends) and not line.error
    told = str(line.error or results[0].get("error")) if not is_good else ""
    body = {"said": [result.get("output") for result in results], "error": told}
    status = 200 if is_good else 500
    task_id = line.ends[0].task_id if line.ends else ""
    return answered(run, line.number, line.custom_id, status=status, task_id=task_id, body=body)
