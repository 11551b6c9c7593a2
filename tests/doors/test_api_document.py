"""``/openapi.json`` tells of every call, and what it tells is what a running mesh answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest

from d8mesh.doors.anthropic.listing import models_page
from d8mesh.doors.openai.described import ModelsQuery
from d8mesh.http.openapi import path_of
from d8mesh.http.routes import HttpRoute, Request
from tests.doors.every_door import Asking, ToldAnswers, described, every_door
from tests.doors.llm_mesh import CHAT, EMBEDDER, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until
from tests.http.calls import scope_of

DOCS: Final = Path(__file__).resolve().parent.parent.parent / "docs"
SAID: Final = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
FORM_BOUNDARY: Final = "b0"


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(), settings={"D8_MODEL_CHANGES": "all"}) as made:
        yield made


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> ToldAnswers:
    return ToldAnswers(every_door(tmp_path_factory.mktemp("doors")))


@pytest.fixture(scope="module")
def ask(mesh: LlmMesh, answers: ToldAnswers) -> Asking:
    return Asking(mesh.call, answers)


def test_the_document_has_every_call_of_every_door_and_no_other(
    mesh: LlmMesh, tmp_path: Path
) -> None:
    found = json.loads(mesh.get("/openapi.json").body)
    served = {(method.upper(), path) for path, calls in found["paths"].items() for method in calls}
    known = {
        (route.method, path_of(route.rule))
        for door in every_door(tmp_path)
        for route in door.routes
        if described(route).what
    }
    assert served - known == {("GET", "/openapi.json")}
    assert known - served == set()


def test_the_document_has_every_call_that_the_docs_tell_of(mesh: LlmMesh) -> None:
    found = json.loads(mesh.get("/openapi.json").body)
    served = {
        (method.upper(), re.sub(r"\{\w+\}", "*", path))
        for path, calls in found["paths"].items()
        for method in calls
    }
    text = "".join((DOCS / name).read_text("utf-8") for name in ("REST.md", "DOORS.md"))
    told = set()
    for method, paths in re.findall(r"`(GET|POST|DELETE) (/[^`? ]*`(?:, `/[^`? ]*`)*)", text):
        for path in paths.replace("`", "").split(", "):
            told.add((method, re.sub(r"\{\w+\}|<[\w:]+>|\bID\b", "*", path)))
    assert told - served == set()
    assert served - told == set()


def test_answers_of_ollamas_door_are_what_is_said(ask: Asking, answers: ToldAnswers) -> None:
    for path in ("/", "/api/version", "/api/tags", "/api/status"):
        ask("GET", path)
    ask("POST", "/api/show", {"model": CHAT})
    for stream in (True, False):
        ask("POST", "/api/chat", {**SAID, "stream": stream})
        ask("POST", "/api/generate", {"model": CHAT, "prompt": "hi", "stream": stream})
        ask("POST", "/api/chat", {"model": CHAT, "stream": stream})
        ask("POST", "/api/pull", {"model": CHAT, "stream": stream})
    ask("GET", "/api/ps")
    ask("POST", "/api/embed", {"model": EMBEDDER, "input": ["a", "b"]})
    ask("POST", "/api/embeddings", {"model": EMBEDDER, "prompt": "a"})
    ask("POST", "/api/chat", {"model": "nothing:1b", "messages": SAID["messages"]})
    ask("POST", "/api/copy", {"source": CHAT, "destination": "x"})
    for method, path in (
        ("POST", "/api/create"), ("POST", "/api/push"), ("POST", "/api/me"),
        ("POST", "/api/signout"), ("GET", "/api/blobs/sha256:0"), ("POST", "/api/blobs/sha256:0"),
        ("DELETE", "/api/user/keys/a/b"), ("POST", "/api/experimental/a/b"),
    ):  # fmt: skip
        ask(method, path)
    assert answers.unseen("/api/p") == answers.unseen("/api/c") == answers.unseen("/api/e") == []


def test_answers_of_openais_door_are_what_is_said(ask: Asking, answers: ToldAnswers) -> None:
    ask("GET", "/v1/models")
    ask("GET", f"/v1/models/{quote(CHAT)}")
    for path in ("", f"/{quote(CHAT)}", "/nothing:1b"):
        ask("GET", f"/v1/models{path}", anthropic_version="2023-06-01")
    for stream in (True, False):
        ask("POST", "/v1/chat/completions", {**SAID, "stream": stream, "n": 2})
        ask("POST", "/v1/completions", {"model": CHAT, "prompt": "hi", "stream": stream})
        ask("POST", "/v1/responses", {"model": CHAT, "input": "hi", "stream": stream})
    for encoding in ("float", "base64"):
        ask(
            "POST", "/v1/embeddings", {"model": EMBEDDER, "input": "a", "encoding_format": encoding}
        )
    ask("POST", "/v1/chat/completions", {"model": "nothing:1b", "messages": SAID["messages"]})
    for rules in ("/v1/models", "/v1/chat", "/v1/completions", "/v1/responses", "/v1/embeddings"):
        assert answers.unseen(rules) == []


def test_answers_of_anthropics_door_are_what_is_said(ask: Asking, answers: ToldAnswers) -> None:
    for stream in (True, False):
        ask("POST", "/v1/messages", {**SAID, "stream": stream})
    ask("POST", "/v1/messages", {"model": CHAT})
    ask("POST", "/v1/messages/count_tokens", SAID)
    for method in ("GET", "POST", "DELETE"):
        ask(method, "/v1/messages/batches/x/y")
    ask("GET", "/v1/messages/batches")
    ask("POST", "/v1/messages/batches")
    assert answers.unseen("/v1/messages") == []


def test_answers_of_files_and_batches_are_what_is_said(ask: Asking, answers: ToldAnswers) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": SAID}
    parts = [
        f'--{FORM_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        f'--{FORM_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"',
        f"\r\n\r\n{json.dumps(line)}\n\r\n--{FORM_BOUNDARY}--\r\n",
    ]
    form = {"content_type": f"multipart/form-data; boundary={FORM_BOUNDARY}"}
    file_id = ask("POST", "/v1/files", "".join(parts).encode(), **form)["id"]
    wanted = {"input_file_id": file_id, "endpoint": line["url"], "completion_window": "24h"}
    batch_id = ask("POST", "/v1/batches", wanted)["id"]
    until(lambda: ask("GET", f"/v1/batches/{batch_id}")["status"] == "completed", "the batch")
    ask("POST", f"/v1/batches/{batch_id}/cancel")  # too late, and told so
    second = ask("POST", "/v1/batches", wanted)["id"]
    with contextlib.suppress(AssertionError):
        ask("POST", f"/v1/batches/{second}/cancel")
    for path in ("", f"/{file_id}", f"/{file_id}/content", "/file-0"):
        ask("GET", f"/v1/files{path}")
    ask("GET", "/v1/batches?limit=1")
    done = ("completed", "cancelled")
    until(lambda: ask("GET", f"/v1/batches/{second}")["status"] in done, "the other batch")
    ask("DELETE", f"/v1/files/{file_id}")
    assert answers.unseen("/v1/files") == []
    left = {each[1] for each in answers.unseen("/v1/batches")}
    assert left <= {"/v1/batches/<batch_id>/cancel"}  # it may have been quicker


class Asked(dict[str, str]):
    """What stands behind the question mark: remembers what is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, *default: Any) -> Any:
        self.names.add(name)
        return super().get(name, *default)


def _read_by(route: HttpRoute) -> set[str]:
    """Return which parameters a call looks for; none of them can be answered here."""
    request, asked = Request(scope_of("GET", "/")), Asked()
    request.__dict__["args"] = asked
    values = dict.fromkeys(re.findall(r"<(?:path:)?(\w+)>", route.rule), "x")

    async def call() -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(route.call(request, **values), 5.0)

    asyncio.run(call())
    return asked.names


def test_the_parameters_that_are_said_are_those_that_are_read(tmp_path: Path) -> None:
    told: dict[str, set[str]] = {}
    read: dict[str, set[str]] = {}
    for door in every_door(tmp_path):
        for route in door.routes:
            if route.method == "GET":
                query = described(route).query
                told[route.rule] = set(query.__struct_fields__) if query else set()  # type: ignore[attr-defined]
                read[route.rule] = _read_by(route)
    asked = Asked()  # only those read them who speak Anthropic's API
    models_page({}, asked)
    assert asked.names == set(ModelsQuery.__struct_fields__)
    assert told.pop("/v1/models") == asked.names
    del read["/v1/models"]
    assert told == read


def test_the_document_is_json_that_anybody_can_read(mesh: LlmMesh) -> None:
    found = mesh.get("/openapi.json")
    assert found.headers["content-type"] == "application/json"
    told = msgspec.json.decode(found.body)
    assert told["openapi"].startswith("3.1")
    names = set(re.findall(rb'"#/components/schemas/(\w+)"', found.body))
    assert {name.decode() for name in names} <= set(told["components"]["schemas"])
    ids = [call["operationId"] for calls in told["paths"].values() for call in calls.values()]
    assert len(ids) == len(set(ids))
