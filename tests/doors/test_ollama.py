"""Ollama's door as its own client uses it, and what changes models there."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest

from tests.doors.llm_mesh import CHAT, EMBEDDER, FILLER, SEER, THINKER, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until
from tests.standin.faults import Kind

HELLO = [{"role": "user", "content": "hello"}]
#: What the machines can pull.
LIBRARY = [f"new{n}:1b" for n in range(9)]
FRESH = 9


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    machines = [machine(fresh=FRESH, library=LIBRARY) for _ in range(2)]
    with llm_mesh(*machines, settings={"D8_MODEL_CHANGES": "all"}) as made:
        yield made


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[ollama.Client]:
    with ollama.Client(host=mesh.url) as made:
        yield made


# ------------------------------------------------------------------------------- asking


def test_an_asyncio_client_chats_generates_and_embeds(mesh: LlmMesh) -> None:
    async def program() -> None:
        async with ollama.AsyncClient(host=mesh.url) as client:
            assert (await client.chat(CHAT, HELLO)).message.content == "You asked: hello"
            assert (await client.generate(CHAT, "hello")).response == "You asked: hello"
            assert len((await client.embed(EMBEDDER, ["a", "b"])).embeddings) == 2
            assert (await client.show(CHAT)).modelinfo
            assert (await client.pull(CHAT)).status == "success"
            coming = await client.generate(CHAT, "say 3 words", stream=True)
            assert "".join([each.response or "" async for each in coming]) == "w0 w1 w2"

    asyncio.run(program())


def test_vectors_come_in_the_order_of_their_texts_from_all_machines(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    texts = [f"text {n}" for n in range(200)]
    made = client.embed("e", texts)
    assert made.model == "e"
    assert len({tuple(row) for row in made.embeddings}) == 200
    assert made.embeddings[150] == client.embed("e", texts[150]).embeddings[0]
    assert list(client.embeddings("e", texts[3]).embedding) == list(made.embeddings[3])
    assert client.embed("e", []).embeddings == []


def test_a_context_goes_on_where_the_answer_before_ended(client: ollama.Client) -> None:
    first = client.generate(CHAT, "hello")
    assert first.context
    assert client.generate(CHAT, "again", context=first.context).context
    assert client.generate(CHAT, "hello", raw=True).context is None


def test_a_form_is_kept(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    told = client.chat(CHAT, HELLO, format=schema)
    assert isinstance(json.loads(told.message.content or "")["n"], int)
    assert json.loads(client.generate(CHAT, "hello", format="json").response or "")


def test_thinking_pictures_and_gaps_need_a_model_that_can(client: ollama.Client) -> None:
    assert client.chat(THINKER, HELLO, think=True).message.thinking
    assert client.generate(FILLER, "a", suffix="b").response
    assert client.generate(SEER, "what?", images=["aGVsbG8="]).response
    calls: list[tuple[Any, str]] = [
        (lambda: client.chat(CHAT, HELLO, think=True), f'"{CHAT}" does not support thinking'),
        (lambda: client.generate(CHAT, "a", suffix="b"), f'"{CHAT}" does not support insert'),
        (lambda: client.chat(EMBEDDER, HELLO), f'"{EMBEDDER}" does not support chat'),
        (lambda: client.generate(EMBEDDER, "a"), f'"{EMBEDDER}" does not support generate'),
        (lambda: client.embed(CHAT, "a"), f'"{CHAT}" does not support embeddings'),
        (lambda: client.chat(SEER, HELLO, tools=[len]), "does not support tools"),
    ]
    for call, told in calls:
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert (caught.value.status_code, told in str(caught.value)) == (400, True), told


def test_a_model_runs_with_its_own_settings_where_the_request_names_none(mesh: LlmMesh) -> None:
    mesh.mend()
    mesh.post("/api/chat", {"model": CHAT, "messages": HELLO})
    mesh.post("/api/chat", {"model": CHAT, "messages": HELLO, "options": {"temperature": 0.25}})
    plain, warm = [chat["options"] for each in mesh.standins for chat in each.chats]
    if "temperature" in plain:
        plain, warm = warm, plain
    assert "temperature" not in plain
    assert plain["num_predict"] > 100_000
    assert warm["temperature"] == 0.25


def test_what_is_not_applied_is_named_in_a_header(mesh: LlmMesh) -> None:
    body = {"model": CHAT, "messages": HELLO, "options": {"num_ctx": 9}, "foo": 1}
    for is_streamed in (True, False):
        answered = mesh.post("/api/chat", body | {"stream": is_streamed})
        assert answered.headers["x-d8-ignored"] == "foo, options.num_ctx"
    assert "x-d8-ignored" not in mesh.post("/api/chat", {"model": CHAT, "messages": HELLO}).headers


def test_headers_tell_the_task_the_machine_the_model_and_a_name_for_the_request(
    mesh: LlmMesh,
) -> None:
    for is_streamed in (True, False):
        body = {"model": "M:1B", "messages": HELLO, "stream": is_streamed}
        told = mesh.post("/api/chat", body).headers
        assert (told["x-d8-model"], told["x-d8-fallback"]) == (CHAT, "no")
        assert told["x-d8-task"]
        assert told["x-d8-machine"]
        assert told["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_caller_may_name_models_that_will_do_too(mesh: LlmMesh, path: str) -> None:
    wish = {"X-D8-Models": f"neither, {CHAT}"}
    asked = {"messages": [{"role": "user", "content": "say 2 words"}], "prompt": "say 2 words"}
    body = {"model": "x", "stream": False, **asked}
    answered = mesh.post(path, body, headers=wish)
    assert (answered.status, answered.json["model"]) == (200, "x")
    assert answered.headers["x-d8-model"] == CHAT
    assert answered.headers["x-d8-fallback"] == "yes"
    mute = {**body, "model": EMBEDDER}
    assert mesh.post(path, mute, headers=wish).headers["x-d8-model"] == CHAT
    assert mesh.post(path, body, headers={"X-D8-Models": "neither"}).status == 404


def test_a_task_of_the_door_is_listed_with_its_door(mesh: LlmMesh, client: ollama.Client) -> None:
    client.chat(CHAT, HELLO)
    task = mesh.tasks()[0]
    assert (task["door"], task["priority"]) == ("ollama", 8)
    assert "ollama-python" in task["caller"]


def test_a_key_is_of_no_matter_where_the_mesh_has_none(mesh: LlmMesh) -> None:
    headers = {"Authorization": "Bearer ollama"}
    assert mesh.get("/api/tags", headers=headers).status == 200


# ------------------------------------------------------------------------------- telling


def test_a_show_tells_what_the_machine_told(client: ollama.Client, mesh: LlmMesh) -> None:
    until(lambda: client.show(CHAT).modelinfo, "what the machine tells of the model")
    for body in ({"model": CHAT}, {"name": CHAT.upper()}):
        told = mesh.post("/api/show", body).json
        assert told["capabilities"] == ["completion", "tools"]
        assert told["model_info"]["general.architecture"]
        assert told["details"]


def test_a_model_that_is_loaded_is_told_with_its_time(client: ollama.Client) -> None:
    client.chat(CHAT, HELLO)
    until(lambda: CHAT in [each.model for each in client.ps().models], "what is loaded")
    (row,) = [each for each in client.ps().models if each.model == CHAT]
    assert row.name == CHAT
    assert row.expires_at
    assert row.size


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/status", 200),
        ("POST", "/api/me", 401),
        ("POST", "/api/signout", 401),
        ("DELETE", "/api/user/keys/abc", 401),
        ("POST", "/api/experimental/web_search", 403),
        ("GET", "/api/chat", 405),
        ("POST", "/api/tags", 405),
        ("HEAD", "/api/blobs/sha256:abc", 404),
        ("POST", "/api/create", 403),
        ("POST", "/api/push", 403),
    ],
)
def test_what_a_mesh_has_none_of_is_told_in_ollamas_form(
    mesh: LlmMesh, method: str, path: str, status: int
) -> None:
    answered = mesh.call(method, path, b"{}" if method == "POST" else None)
    assert answered.status == status
    assert answered.headers["content-type"] == "application/json"
    if path == "/api/status":
        assert answered.json == {"cloud": {"disabled": True, "source": "config"}}
    elif method != "HEAD":
        assert answered.json["error"]


def test_a_blob_is_refused_before_its_body_is_read(mesh: LlmMesh) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(mesh.url).port or 0)) as caller:
        caller.sendall(
            b"POST /api/blobs/sha256:abc HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Length: 5000000000\r\n\r\n"
        )
        caller.settimeout(20)
        assert caller.recv(100).startswith(b"HTTP/1.1 403")


def test_a_blob_of_the_client_is_refused_too(client: ollama.Client, tmp_path: Path) -> None:
    blob = tmp_path / "model.gguf"
    blob.write_bytes(b"x" * 3_000_000)
    with pytest.raises((ollama.ResponseError, ConnectionError)):
        client.create_blob(blob)


# ------------------------------------------------------------------------------- changes


def test_a_pull_tells_its_progress_and_then_the_model_can_be_asked(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    told = list(client.pull("new0:1b", stream=True))
    assert told[0].status == "pulling manifest"
    assert told[-1].status == "success"
    assert any(each.digest and each.total for each in told)
    assert client.chat("new0:1b", HELLO).message.content
    assert client.pull("new1:1b").status == "success"
    assert sum(each.counters.requests["/api/pull"] for each in mesh.standins) == 2


def test_a_pull_that_fails_ends_in_an_error(mesh: LlmMesh, client: ollama.Client) -> None:
    for is_streamed in (True, False):
        with pytest.raises(ollama.ResponseError):
            list(client.pull("nobody:1b", stream=is_streamed))
    answered = mesh.post("/api/pull", {"model": "nobody:1b"})
    if answered.status == 200:
        assert list(answered.lines[-1]) == ["error"]
    else:
        assert answered.json["error"]


def test_a_caller_that_leaves_stops_its_pull(mesh: LlmMesh) -> None:
    for each in mesh.standins:
        each.fault(Kind.STALL, "new2:1b", after=1)
    with mesh.opened("POST", "/api/pull", {"model": "new2:1b"}) as response:
        assert json.loads(response.readline())["status"]
        task_id = response.headers["X-D8-Task"]
    status = f"/api/tasks/status/{task_id}"
    until(lambda: mesh.get(status).json["status"] in ("cancelled", "failed"), "the pull's end")
    counters = [each.counters for each in mesh.standins]

    def is_hung_up() -> bool:
        closed = [each for one in counters for each in one.closed]
        return any(each.path == "/api/pull" and each.by_client for each in closed)

    until(is_hung_up, "the machine to be told")


def test_a_model_is_deleted_from_every_machine(mesh: LlmMesh, client: ollama.Client) -> None:
    name = mesh.fresh()
    assert client.delete(name).status == "success"
    tags = [each.ollama.library.tags(tells_capabilities=True) for each in mesh.standins]
    assert name not in str(tags)
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.chat(name, HELLO)
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.delete(name)
    assert caught.value.status_code == 404


def test_no_model_is_copied(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.copy(CHAT, "copy")
    assert caught.value.status_code == 403


@pytest.fixture(scope="module")
def frozen() -> Iterator[LlmMesh]:
    with llm_mesh(machine(), settings={"D8_MODEL_CHANGES": "none"}) as made:
        yield made


def test_where_nothing_may_change_only_what_is_there_is_pulled(frozen: LlmMesh) -> None:
    assert frozen.post("/api/pull", {"model": CHAT}).lines[-1] == {"status": "success"}
    for method, path in (("POST", "/api/pull"), ("DELETE", "/api/delete")):
        name = "new0:1b" if method == "POST" else CHAT
        answered = frozen.call(method, path, {"model": name})
        assert answered.status == 403
        assert "D8_MODEL_CHANGES" in answered.json["error"]


def test_what_is_known_is_told_also_when_all_machines_are_away(frozen: LlmMesh) -> None:
    before = frozen.get("/api/tags").json
    until(lambda: "model_info" in frozen.post("/api/show", {"model": CHAT}).json, "its description")
    shown = frozen.post("/api/show", {"model": CHAT}).json
    frozen.kill_worker(0)
    until(lambda: frozen.get("/health").json["workers_online"] == 0, "the worker's death")
    assert frozen.get("/api/tags").json == before
    assert frozen.post("/api/show", {"model": CHAT}).json == shown
    assert frozen.get("/api/ps").json == {"models": []}
    assert frozen.get("/api/version").status == 200
