"""OpenAI's door over a real socket: what reaches it, in whatever form, and how it says no."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import openai
import pytest

from tests.doors.checks.openai_clients import HELLO, chat_sent, events_of, official, text_of
from tests.doors.llm_mesh import CHAT, EMBEDDER, FILLER, LlmMesh, llm_mesh, machine
from tests.standin.calls import Answered
from tests.standin.machine import Model

SLASHED = "hf.co/acme/m-gguf:q4_k_m"
BODY = {"model": CHAT, "messages": HELLO}
SAID = "You asked: hello there"


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    names = [CHAT, SLASHED]
    models = [Model(name=name) for name in names]
    models.append(Model(name=FILLER, can=("completion", "insert")))
    models.append(Model(name=EMBEDDER, can=("embedding",)))
    with llm_mesh(machine(models=models)) as made:
        yield made


def refused(answered: Answered, status: int) -> dict[str, Any]:
    """Return the error of an answer in OpenAI's form."""
    assert answered.status == status, answered.body
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-request-id"].startswith("req_")
    assert answered.headers["x-should-retry"] in ("true", "false")
    error: dict[str, Any] = answered.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain; charset=utf-8"},
        {},
    ],
)
def test_a_body_is_json_whatever_it_is_called(mesh: LlmMesh, headers: dict[str, str]) -> None:
    answered = mesh.post("/v1/chat/completions", json.dumps(BODY).encode(), headers=headers)
    assert answered.json["choices"][0]["message"]["content"] == SAID


def test_a_compressed_body_is_read(mesh: LlmMesh) -> None:
    coded = gzip.compress(json.dumps(BODY).encode())
    answered = mesh.post("/v1/chat/completions", coded, headers={"Content-Encoding": "gzip"})
    assert answered.json["choices"][0]["message"]["content"] == SAID


def test_models_are_listed_and_found_by_names_with_slashes(mesh: LlmMesh) -> None:
    with official(mesh) as client:
        listed = {each.id: each for each in client.models.list()}
        assert {CHAT, SLASHED, FILLER, EMBEDDER} <= listed.keys()
        assert listed[SLASHED].owned_by == "acme"
        assert client.models.retrieve(SLASHED).id == SLASHED
        assert client.models.retrieve("library/" + CHAT).id == "library/" + CHAT
        with pytest.raises(openai.NotFoundError) as raised:
            client.models.retrieve("no/body:7b")
        assert raised.value.code == "model_not_found"
    assert mesh.get("/v1/models/" + SLASHED).status == 200
    assert mesh.get("/v1/models/" + quote(SLASHED, safe="")).status == 200


def test_fields_without_effect_are_named_in_a_header(mesh: LlmMesh) -> None:
    fields = {"user": "ann", "store": True, "options": {"num_ctx": 9}}
    for is_streamed in (False, True):
        answered = chat_sent(mesh, stream=is_streamed, **fields)
        assert answered.headers["x-d8-ignored"] == "store, user, options.num_ctx"
    assert "x-d8-ignored" not in chat_sent(mesh).headers


def test_what_is_asked_reaches_the_model_as_it_was_asked(mesh: LlmMesh) -> None:
    chat_sent(
        mesh,
        messages=[{"role": "developer", "content": "be kind"}, *HELLO],
        temperature=0.25,
        top_p=0.5,
        seed=7,
        stop="END",
        presence_penalty=1,
        max_tokens=30,
        options={"typical_p": 0.9},
    )
    sent = mesh.standins[0].chats[-1]
    assert sent["messages"][0] == {"role": "system", "content": "be kind"}
    wanted = {
        "temperature": 0.25, "top_p": 0.5, "seed": 7, "stop": ["END"], "presence_penalty": 1.0,
        "num_predict": 30, "typical_p": 0.9,
    }  # fmt: skip
    assert {name: sent["options"].get(name) for name in wanted} == wanted


def test_what_is_not_asked_is_left_to_the_model(mesh: LlmMesh) -> None:
    chat_sent(mesh)
    options = mesh.standins[0].chats[-1]["options"]
    assert not {"temperature", "top_p", "seed"} & options.keys()
    assert options["num_predict"] > 100_000  # no answer is cut where nobody wished for that


def test_a_task_is_listed_with_its_door_and_its_caller(mesh: LlmMesh) -> None:
    answered = mesh.post("/v1/chat/completions", BODY, headers={"User-Agent": "curious/1.0"})
    task_id = answered.headers["x-d8-task"]
    listed = mesh.get("/api/tasks?door=openai").json["tasks"]
    (task,) = [each for each in listed if each["task_id"] == task_id]
    assert (task["door"], task["priority"], task["status"]) == ("openai", 8, "completed")
    assert task["caller"] == "127.0.0.1 curious/1.0"


def test_likelihoods_are_told_whole_and_streamed(mesh: LlmMesh) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
    whole = chat_sent(mesh, **fields).json["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in whole) == SAID
    assert [len(each["top_logprobs"]) for each in whole] == [2] * len(whole)
    *chunks, _ = events_of(chat_sent(mesh, stream=True, **fields))
    told = [each["choices"][0]["logprobs"] for each in chunks]
    tokens = [token["token"] for each in told if each for token in each["content"]]
    assert "".join(tokens) == text_of(chunks) == SAID


def test_completions_go_on_with_texts_and_fill_gaps(mesh: LlmMesh) -> None:
    with official(mesh) as client:
        answer = client.completions.create(model=CHAT, prompt=["one", "two"], echo=True, n=2)
        assert [each.text for each in answer.choices] == [
            "oneYou asked: one", "oneYou asked: one", "twoYou asked: two", "twoYou asked: two",
        ]  # fmt: skip
        assert [each.index for each in answer.choices] == [0, 1, 2, 3]
        chunks = list(client.completions.create(model=CHAT, prompt="one", stream=True, logprobs=1))
        assert "".join(each.choices[0].text for each in chunks) == "You asked: one"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[0].choices[0].logprobs.tokens == ["You"]
        client.completions.create(model=FILLER, prompt="def f(", suffix="return 1")
    path, _, sent = mesh.standins[0].counters.bodies[-1]
    assert (path, sent["prompt"], sent["suffix"]) == ("/api/generate", "def f(", "return 1")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/images/generations", {"prompt": "a cat"}, 404),
        ("GET", "/v1/models/nobody", None, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("DELETE", "/v1/models/" + CHAT, None, 405),
        ("POST", "/v1/embeddings", {"model": EMBEDDER, "input": []}, 400),
        ("POST", "/v1/embeddings", {"model": CHAT, "input": "x"}, 400),
        ("POST", "/v1/chat/completions", {"model": EMBEDDER, "messages": HELLO}, 400),
        ("POST", "/v1/chat/completions", BODY | {"n": 17}, 400),
        ("POST", "/v1/chat/completions", BODY | {"reasoning_effort": "high"}, 400),
    ],
)
def test_every_no_is_told_in_openais_form(
    mesh: LlmMesh, method: str, path: str, body: object, status: int
) -> None:
    refused(mesh.call(method, path, body), status)


def test_who_is_no_neighbour_of_the_host_is_told_in_openais_form(mesh: LlmMesh) -> None:
    answered = mesh.get("/v1/models", headers={"Host": "evil.example"})
    assert refused(answered, 403)["code"] == "http.host"
    answered = mesh.post("/v1/chat/completions", BODY, headers={"Origin": "https://evil.example"})
    assert refused(answered, 403)["code"] == "http.origin"


def test_an_error_names_its_field(mesh: LlmMesh) -> None:
    answered = chat_sent(mesh, messages=[{"role": "user", "content": "x"}, {"role": "wizard"}])
    error = refused(answered, 400)
    assert (error["param"], error["type"]) == ("messages[1].role", "invalid_request_error")
    assert refused(chat_sent(mesh, model=None), 400)["code"] == "missing_required_parameter"
    assert refused(chat_sent(mesh, tools=5), 400)["param"] == "tools"


def test_the_same_key_gets_the_same_answer_and_another_body_a_conflict(mesh: LlmMesh) -> None:
    key = {"Idempotency-Key": "routes-1"}
    first = mesh.post("/v1/chat/completions", BODY, headers=key)
    again = mesh.post("/v1/chat/completions", BODY, headers=key)
    assert first.json["id"] == again.json["id"]
    assert first.json["choices"] == again.json["choices"]
    other = mesh.post("/v1/chat/completions", BODY | {"seed": 1}, headers=key)
    assert refused(other, 409)["code"] == "key.conflict"
    assert other.headers["x-should-retry"] == "false"
    streamed = mesh.post("/v1/chat/completions", BODY | {"stream": True}, headers=key)
    assert text_of(events_of(streamed)) == SAID


def test_a_caller_that_leaves_ends_the_model(mesh: LlmMesh) -> None:
    (standin,) = mesh.standins
    standin.reset()
    asked = BODY | {"messages": [{"role": "user", "content": "say 5000 words"}], "stream": True}
    with mesh.opened("POST", "/v1/chat/completions", asked) as response:
        assert response.read(10)
    standin.wait_until(lambda: bool(standin.counters.cancelled))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_the_model_itself_refuses_is_a_bad_request_that_names_the_task(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    answered = chat_sent(mesh, options={"top_k": "x"}, stream=is_streamed)
    error = refused(answered, 400)
    assert error["type"] == "invalid_request_error"
    assert "must be of type integer" in error["message"]
    assert answered.headers["x-d8-task"] in error["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"x" * 10, {"Content-Encoding": "br"}, 415),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (BODY, {"X-D8-Priority": "11"}, 400),
        (b"{}", {"Content-Length": str(50_000_000)}, 413),
    ],
)
def test_what_cannot_be_read_is_told_in_openais_form(
    mesh: LlmMesh, body: object, headers: dict[str, str], status: int
) -> None:
    refused(mesh.post("/v1/chat/completions", body, headers=headers), status)


def test_another_model_answers_only_where_the_caller_names_it(mesh: LlmMesh) -> None:
    asked = BODY | {"model": "nobody:7b"}
    headers = {"X-D8-Models": f"nowhere:1b, {CHAT}"}
    answered = mesh.post("/v1/chat/completions", asked, headers=headers)
    assert answered.json["model"] == "nobody:7b"
    assert answered.headers["x-d8-model"] == CHAT
    assert answered.headers["x-d8-fallback"] == "yes"
    assert refused(mesh.post("/v1/chat/completions", asked), 404)["code"] == "model_not_found"


def test_a_key_may_carry_a_priority(mesh: LlmMesh) -> None:
    headers = {"Authorization": "Bearer sk-any;priority=3"}
    task_id = mesh.post("/v1/chat/completions", BODY, headers=headers).headers["x-d8-task"]
    (task,) = [each for each in mesh.tasks() if each["task_id"] == task_id]
    assert task["priority"] == 3


def test_a_page_of_this_machine_may_ask_and_its_preflight_is_answered(mesh: LlmMesh) -> None:
    origin = {"Origin": "http://localhost:3000"}
    answered = mesh.post("/v1/chat/completions", BODY, headers=origin)
    assert answered.headers["access-control-allow-origin"] == "http://localhost:3000"
    asks = {**origin, "Access-Control-Request-Method": "POST"}
    assert mesh.call("OPTIONS", "/v1/chat/completions", headers=asks).status == 204
