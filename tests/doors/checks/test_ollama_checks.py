"""The checks of Ollama's door, over a real socket: raw HTTP where bytes count, else its client.

The numbers are those of the forty checks that the doors of language models have to pass.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest

from tests.doors.llm_mesh import (
    CHAT,
    EMBEDDER,
    FIRST_TOKEN_S,
    MODELS,
    TOKEN_GAP_S,
    LlmMesh,
    fresh_name,
    llm_mesh,
    machine,
)
from tests.end_to_end.processes import until
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import Answered
from tests.standin.faults import Kind
from tests.standin.machine import Model

#: Tasks that the small pool takes.
QUEUE = 6
#: Models for tests with faults.
FRESH = 40
#: Two names for one content, of which each machine knows another.
TWO_NAMES = Model(name="two:1b", aliases=("other:1b",))


@pytest.fixture(scope="module")
def two() -> Iterator[LlmMesh]:
    has_two_names = machine(models=(*MODELS, TWO_NAMES), num_parallel=4, fresh=FRESH)
    with llm_mesh(machine(num_parallel=4, fresh=FRESH), has_two_names) as made:
        yield made


@pytest.fixture
def mesh(two: LlmMesh) -> LlmMesh:
    for each in two.standins:
        each.mend()
        each.reset()
    return two


@pytest.fixture
def model(two: LlmMesh) -> str:
    """What a fault of one test leaves does not reach the others."""
    return two.fresh()


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[ollama.Client]:
    with ollama.Client(host=mesh.url) as made:
        yield made


def question(words: int = 5, model: str = CHAT, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say {words} words"}]
    return {"model": model, "messages": messages} | more


def said(words: int) -> str:
    return " ".join(f"w{n}" for n in range(words))


def text_of(lines: list[Any]) -> str:
    return "".join(line["message"]["content"] for line in lines if "message" in line)


def error_of(answered: Answered) -> str:
    assert answered.headers["content-type"] == "application/json"
    return str(answered.json["error"])


def asked_of(standin: OllamaStandin, model: str) -> int:
    """Return how often a machine was asked this, the probes of its worker left out."""
    return sum(
        chat["model"] == model and chat["messages"] == question(5)["messages"]
        for chat in standin.chats
    )


# ------------------------------------------------------------------------------- telling


def test_check_01_the_root_says_that_it_is_running(mesh: LlmMesh) -> None:
    told, head = mesh.get("/"), mesh.call("HEAD", "/")
    assert (told.status, told.body) == (200, b"Ollama is running")
    assert told.headers["content-type"].startswith("text/plain")
    assert (head.status, head.body) == (200, b"")


def test_check_02_the_version_is_digits_and_dots(mesh: LlmMesh) -> None:
    told, head = mesh.get("/api/version"), mesh.call("HEAD", "/api/version")
    assert re.fullmatch(r"\d+(\.\d+)+", told.json["version"])
    assert (head.status, head.body) == (200, b"")


def test_check_03_no_machine_is_an_empty_list() -> None:
    with llm_mesh() as nobody:
        told = nobody.get("/api/tags")
        assert (told.status, told.json) == (200, {"models": []})
        assert told.headers["content-type"] == "application/json"
        assert nobody.get("/api/ps").json == {"models": []}
        with ollama.Client(host=nobody.url) as client:
            assert client.list().models == []


def test_check_04_a_model_of_two_machines_is_listed_once_and_each_of_its_names(
    mesh: LlmMesh,
) -> None:
    rows = mesh.get("/api/tags").json["models"]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))
    assert {*names} == {
        *(each.name for each in MODELS), *map(fresh_name, range(FRESH)), "two:1b", "other:1b"
    }  # fmt: skip
    digests = {row["name"]: row["digest"] for row in rows}
    assert digests["two:1b"] == digests["other:1b"] == TWO_NAMES.digest
    assert all(row["model"] == row["name"] for row in rows)
    assert all(re.fullmatch("[0-9a-f]{64}", row["digest"]) for row in rows)


def test_check_05_every_listed_name_can_be_asked(client: ollama.Client) -> None:
    for model in client.list().models:
        name = str(model.model)
        if name == EMBEDDER:
            assert client.embed(name, "a").embeddings
        else:
            assert client.chat(**question(2, name)).message.content == said(2)


@pytest.mark.parametrize("name", [EMBEDDER, "e", "E", "library/e:latest"])
def test_check_06_a_name_with_and_without_its_tag_is_echoed(mesh: LlmMesh, name: str) -> None:
    assert mesh.post("/api/embed", {"model": name, "input": "a"}).json["model"] == name


def test_check_06_every_spelling_works_and_is_echoed(mesh: LlmMesh) -> None:
    for name in (CHAT, CHAT.upper(), f"library/{CHAT}", f" {CHAT} "):
        lines = mesh.post("/api/chat", question(2, name)).lines
        assert {line["model"] for line in lines} == {name}
        whole = mesh.post("/api/chat", question(2, name, stream=False)).json
        assert whole["model"] == name


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_check_07_a_body_is_taken_whatever_its_media_type_says(mesh: LlmMesh, kind: str) -> None:
    body = json.dumps(question(2, stream=False)).encode()
    headers = {"Content-Type": kind} if kind else {}
    answered = mesh.post("/api/chat", body, headers=headers)
    assert answered.status == 200
    assert answered.json["message"]["content"] == said(2)


# ------------------------------------------------------------------------------- asking


def test_check_08_a_stream_is_lines_of_json_with_one_end(mesh: LlmMesh) -> None:
    answered = mesh.post("/api/chat", question(20))
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/x-ndjson"
    *lines, rest = answered.body.split(b"\n")
    assert rest == b""
    assert all(lines), "a blank line"
    told = [json.loads(line) for line in lines]
    assert text_of(told) == said(20)
    assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
    assert told[-1]["done_reason"] == "stop"
    assert (told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == (3, 20)


def test_check_08_the_client_streams_chats_and_prompts(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    async def program() -> str:
        async with ollama.AsyncClient(host=mesh.url) as client:
            coming = await client.chat(**question(20), stream=True)
            return "".join([each.message.content or "" async for each in coming])

    chat = client.chat(**question(20), stream=True)
    assert "".join(each.message.content or "" for each in chat) == said(20)
    assert asyncio.run(program()) == said(20)
    pieces = list(client.generate(CHAT, "say 20 words", stream=True))
    assert "".join(each.response or "" for each in pieces) == said(20)
    assert pieces[-1].done
    assert pieces[-1].context


def test_check_09_it_is_streamed_unless_the_body_says_no(mesh: LlmMesh) -> None:
    streamed = mesh.post("/api/chat", question(5, stream=None))
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert len(streamed.lines) > 1
    whole = mesh.post("/api/chat", question(5, stream=False))
    assert whole.headers["content-type"] == "application/json"
    assert whole.json["message"]["content"] == said(5)
    assert whole.json["done"] is True
    prompt = {"model": CHAT, "prompt": "say 5 words", "stream": False}
    assert mesh.post("/api/generate", prompt).json["response"] == said(5)


def test_check_10_a_model_is_let_go_of_on_every_machine(
    mesh: LlmMesh, client: ollama.Client, model: str
) -> None:
    loaded = client.generate(model, "")
    assert (loaded.response, loaded.done, loaded.done_reason) == ("", True, "load")
    assert sum(model in each.loaded for each in mesh.standins) == 1
    with ThreadPoolExecutor(12) as threads:  # so many that both machines load it
        for call in [
            threads.submit(mesh.post, "/api/chat", question(20, model)) for _ in range(12)
        ]:
            assert call.result().status == 200
    until(lambda: model in str(mesh.get("/api/ps").json), "the list of what is loaded")
    answered = mesh.post("/api/generate", {"model": model, "keep_alive": 0})
    assert answered.headers["content-type"] == "application/json"
    told = answered.json
    assert told.pop("created_at")
    assert told == {"model": model, "response": "", "done": True, "done_reason": "unload"}
    assert not any(model in each.loaded for each in mesh.standins)
    until(lambda: model not in str(mesh.get("/api/ps").json), "the list of what is loaded")
    assert mesh.post("/api/chat", {"model": model, "keep_alive": 0}).json["message"] == {
        "role": "assistant",
        "content": "",
    }


def test_check_11_an_unknown_model_is_not_found_at_once(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/api/chat", question(1, "x")),
        ("/api/chat", question(1, "x", stream=False)),
        ("/api/generate", {"model": "x", "prompt": "a"}),
        ("/api/embed", {"model": "x", "input": "a"}),
        ("/api/show", {"model": "x"}),
        ("/api/copy", {"source": "x", "destination": "y"}),
    ]
    began = time.monotonic()
    for path, body in calls:
        answered = mesh.post(path, body)
        assert answered.status == 404, path
        assert answered.json == {"error": "model 'x' not found"}
    assert time.monotonic() - began < FIRST_TOKEN_S
    with pytest.raises(ollama.ResponseError, match="model 'x' not found") as caught:
        client.chat(**question(1, "x"))
    assert caught.value.status_code == 404


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/show"])
def test_check_12_what_is_no_request_is_refused(mesh: LlmMesh, path: str) -> None:
    empty = mesh.post(path, {})
    assert empty.status == (400 if path in ("/api/chat", "/api/show") else 404)
    assert error_of(empty) in ("model is required", "model '' not found")
    for body, told in ((b"{", "not JSON"), (b"", "missing request body")):
        answered = mesh.post(path, body)
        assert answered.status == 400
        assert told in error_of(answered)


# ------------------------------------------------------------------- what machines do wrong


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "kind", [Kind.FAST_FAIL, Kind.LOAD_FAIL, Kind.BUSY, Kind.NOT_JSON, Kind.ERROR_LINE]
)
def test_check_13_14_15_what_fails_before_its_first_line_runs_elsewhere(
    mesh: LlmMesh, model: str, kind: Kind, is_streamed: bool
) -> None:
    bad, good = mesh.standins
    bad.fault(kind, model, after=0)
    for _ in range(4):  # the first of them may not go to the bad one
        answered = mesh.post("/api/chat", question(5, model, stream=is_streamed))
        assert answered.status == 200
        lines = answered.lines if is_streamed else [answered.json]
        assert text_of(lines) == said(5)
        assert answered.headers["x-d8-service"].endswith(f":{good.port}")
    asked = asked_of(bad, model)
    mesh.post("/api/chat", question(5, model))
    assert asked_of(bad, model) <= asked + 1, "it is avoided for a while"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_13_where_all_fail_the_status_says_so(
    mesh: LlmMesh, model: str, is_streamed: bool
) -> None:
    for each in mesh.standins:
        each.fault(Kind.FAST_FAIL, model)
    answered = mesh.post("/api/chat", question(5, model, stream=is_streamed))
    assert answered.status >= 500
    assert "task" in error_of(answered)


def test_check_16_one_that_fails_in_a_millisecond_does_not_draw_all_requests(
    mesh: LlmMesh,
    model: str,
) -> None:
    bad, good = mesh.standins
    bad.fault(Kind.BUSY, model)
    with ThreadPoolExecutor(20) as threads:
        calls = [
            threads.submit(mesh.post, "/api/chat", question(3, model, stream=n % 2 == 0))
            for n in range(20)
        ]
        answers = [call.result() for call in calls]
    assert [each.status for each in answers] == [200] * 20
    assert {each.headers["x-d8-service"].rpartition(":")[2] for each in answers} == {str(good.port)}


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE])
def test_check_17_19_a_stream_that_breaks_ends_in_an_error_and_nothing_comes_twice(
    mesh: LlmMesh, model: str, client: ollama.Client, kind: Kind
) -> None:
    for each in mesh.standins:
        each.fault(kind, model, after=3)
    answered = mesh.post("/api/chat", question(20, model))
    assert answered.status == 200
    *lines, last = answered.lines
    assert text_of(lines) == said(3)
    assert not any(line["done"] for line in lines)
    assert list(last) == ["error"]
    assert answered.headers["x-d8-task"] in last["error"]
    model = mesh.fresh()
    for each in mesh.standins:
        each.fault(kind, model, after=3)
    heard: list[str] = []  # pieces that come quickly come together
    stream = client.chat(**question(20, model), stream=True)
    with pytest.raises(ollama.ResponseError, match="task"):
        heard.extend(part.message.content or "" for part in stream)
    assert "".join(heard) == said(3)


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE])
def test_check_17_19_what_is_not_streamed_moves_to_another_machine_unseen(
    mesh: LlmMesh, model: str, kind: Kind
) -> None:
    bad, good = mesh.standins
    bad.fault(kind, model, after=3)
    for _ in range(3):
        answered = mesh.post("/api/chat", question(20, model, stream=False))
        assert answered.status == 200
        assert text_of([answered.json]) == said(20)
        assert answered.headers["x-d8-service"].endswith(f":{good.port}")


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE])
def test_check_19_where_every_machine_breaks_off_it_is_a_bad_gateway(
    mesh: LlmMesh, model: str, kind: Kind
) -> None:
    for each in mesh.standins:
        each.fault(kind, model, after=3)
    answered = mesh.post("/api/chat", question(20, model, stream=False))
    assert answered.status in (502, 503)
    assert answered.headers["x-d8-task"] in error_of(answered)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_21_a_silent_machine_costs_the_set_time_and_is_avoided(
    mesh: LlmMesh, model: str, is_streamed: bool
) -> None:
    silent, other = mesh.standins
    silent.fault(Kind.SILENT, model)
    began = time.monotonic()
    for _ in range(3):  # one of them meets it
        answered = mesh.post("/api/chat", question(5, model, stream=is_streamed))
        assert answered.status == 200
        assert answered.headers["x-d8-service"].endswith(f":{other.port}")
    assert time.monotonic() - began < 3 * FIRST_TOKEN_S + TOKEN_GAP_S
    asked = asked_of(silent, model)
    mesh.post("/api/chat", question(5, model, stream=is_streamed))
    assert asked_of(silent, model) == asked


# ------------------------------------------------------------------------------- the rest


def test_check_27_a_call_of_a_tool_has_an_object_and_ends_with_stop(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    messages = [{"role": "user", "content": "use weather please"}]
    body = {"model": CHAT, "messages": messages, "tools": [tool]}
    lines = mesh.post("/api/chat", body).lines
    (calls,) = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    (call,) = calls
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "a"}}
    assert call["id"].startswith("call_")
    assert lines[-1]["done_reason"] == "stop"
    told = client.chat(CHAT, messages, tools=[tool])
    assert told.message.tool_calls
    assert told.message.tool_calls[0].function.arguments == {"city": "a"}
    assert told.done_reason == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_29_thoughts_stand_apart_from_the_text(mesh: LlmMesh, is_streamed: bool) -> None:
    body = question(5, "thinker:1b", think=True, stream=is_streamed)
    answered = mesh.post("/api/chat", body)
    lines = answered.lines if is_streamed else [answered.json]
    assert text_of(lines) == said(5)
    thoughts = "".join(line["message"].get("thinking", "") for line in lines)
    assert thoughts == "They ask, so I answer."


def test_check_30_a_picture_reaches_the_model(mesh: LlmMesh) -> None:
    body = question(2, "v:1b", stream=False)
    body["messages"][0]["images"] = ["aGVsbG8="]
    assert mesh.post("/api/chat", body).status == 200
    (asked,) = [chat for each in mesh.standins for chat in each.chats if chat["model"] == "v:1b"]
    assert asked["messages"][0]["images"] == ["aGVsbG8="]


def test_check_31_a_bound_of_tokens_is_kept_and_told(mesh: LlmMesh) -> None:
    lines = mesh.post("/api/chat", question(50, options={"num_predict": 5})).lines
    assert text_of(lines) == said(5)
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", 5)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_37_a_caller_that_leaves_ends_the_work_of_the_machine(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    body = json.dumps(question(5000, stream=is_streamed)).encode()
    with socket.create_connection(("127.0.0.1", urlsplit(mesh.url).port)) as caller:
        head = f"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        caller.sendall(head.encode() + body)
        if is_streamed:
            assert caller.recv(100).startswith(b"HTTP/1.1 200")
        until(lambda: sum(each.running for each in mesh.standins) == 1, "the chat to run")
    until(lambda: sum(each.running for each in mesh.standins) == 0, "the slot to be free", 5.0)
    assert sum(len(each.counters.cancelled) for each in mesh.standins) == 1
    assert mesh.post("/api/chat", question(2)).status == 200


def test_check_39_a_pull_of_what_is_there_ends_in_success(
    mesh: LlmMesh, client: ollama.Client
) -> None:
    answered = mesh.post("/api/pull", {"model": CHAT, "insecure": True})
    assert answered.headers["content-type"] == "application/x-ndjson"
    told = [line["status"] for line in answered.lines]
    assert (told[0], told[-1]) == ("pulling manifest", "success")
    whole = mesh.post("/api/pull", {"name": CHAT, "stream": False})
    assert (whole.status, whole.json) == (200, {"status": "success"})
    assert client.pull(CHAT).status == "success"
    assert [each.status for each in client.pull(CHAT, stream=True)][-1] == "success"
    assert not any(each.counters.requests["/api/pull"] for each in mesh.standins)


# ------------------------------------------------------------------------- a small machine


@pytest.fixture(scope="module")
def small() -> Iterator[LlmMesh]:
    with llm_mesh(machine(num_parallel=1), settings={"TASK_QUEUE_SIZE": str(QUEUE)}) as made:
        yield made


def test_check_20_six_requests_at_a_machine_of_one_slot_all_end(small: LlmMesh) -> None:
    with ThreadPoolExecutor(6) as threads:
        calls = [
            threads.submit(small.post, "/api/chat", question(10, stream=n % 2 == 0))
            for n in range(6)
        ]
        answers = [call.result() for call in calls]
    assert [each.status for each in answers] == [200] * 6
    assert small.standins[0].ollama.machine.running_max[CHAT] == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_36_a_full_pool_says_when_to_come_again(small: LlmMesh, is_streamed: bool) -> None:
    body = question(20_000, stream=is_streamed)
    with ThreadPoolExecutor(2 * QUEUE) as threads:
        calls: list[Future[Answered]] = []
        while len(pending(small)) < QUEUE:
            calls.append(threads.submit(small.post, "/api/chat", body))
            until(lambda: len(unfinished(small)) == len(calls), "it to be accepted")
        refused = small.post("/api/chat", body)
        assert refused.status == 503
        assert 0 < int(refused.headers["retry-after"]) <= 120
        assert error_of(refused).startswith("server busy, please try again.  maximum pending")
        for path, form in (("/v1/chat/completions", "rate_limit_exceeded"), ("/v1/messages", "")):
            other = small.post(path, body | {"max_tokens": 9})
            assert other.status == 429
            assert 0 < int(other.headers["retry-after"]) <= 120
            assert other.json["error"]["type"] == "rate_limit_error"
            assert other.json["error"].get("code", "") == form
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = small.post(path, body | {"max_tokens": 9})
            assert refused.status == 429, refused.body
            assert refused.json["error"]["type"] == "rate_limit_error"
            assert refused.headers["x-should-retry"] == "true"
            assert 0 < int(refused.headers["retry-after"]) <= 120
        for each in small.tasks():
            small.post(f"/api/tasks/{each['task_id']}/cancel", {})
        for call in calls:  # each is told what became of it, and none waits
            assert call.result().status == 200 or "task" in error_of(call.result())
    assert small.post("/api/chat", question(2)).status == 200


def pending(mesh: LlmMesh) -> list[Any]:
    """Return the tasks that wait."""
    return [each for each in mesh.tasks() if each["status"] in ("pending", "queued")]


def unfinished(mesh: LlmMesh) -> list[Any]:
    """Return the tasks that wait or run."""
    return [each for each in mesh.tasks() if not each["completed_at"]]
