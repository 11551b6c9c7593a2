"""Checks of Ollama's door against a model that really generates: llama.cpp and SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import ollama
import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.status import ask
from tests.end_to_end.processes import until
from tests.real_model import MODEL, needs_model
from tests.standin.calls import call

pytestmark = [needs_model, pytest.mark.timeout(300)]

NO_OLLAMA: Final = "http://127.0.0.1:9"
ASKS: Final = [{"role": "user", "content": "Name three colours."}]
#: The same answer each time.
SURE: Final = {"temperature": 0, "seed": 1, "num_predict": 24}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = {
        "DEEPSEEK_BASE_URL": NO_OLLAMA,
        "D8_MODELS_DIR": "",
        "D8_NO_INSTALL": "1",
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
    }
    with mesh(workers=0) as running:
        running.children.start("worker", "worker", settings=settings)
        until(lambda: ask(running.url, "/api/models")["models"], "the embedded model")
        yield running.url


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url) as made:
        yield made


def test_check_05_and_06_every_listed_name_and_spelling_can_be_asked(client: ollama.Client) -> None:
    names = [str(each.model) for each in client.list().models]
    assert names == [f"{MODEL}:latest"]
    for name in (*names, MODEL, MODEL.upper()):
        assert client.chat(name, ASKS, options=SURE).model == name
        assert client.show(name).capabilities


def test_check_08_and_09_a_stream_says_what_a_whole_answer_says(
    client: ollama.Client, url: str
) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": ASKS, "options": SURE}
    streamed = call(url, "POST", "/api/chat", body)
    *lines, rest = streamed.body.split(b"\n")
    told = [json.loads(line) for line in lines]
    assert (rest, [line["done"] for line in told][-2:]) == (b"", [False, True])
    whole = client.chat(MODEL, ASKS, options=SURE)
    assert "".join(line["message"]["content"] for line in told) == whole.message.content
    assert told[-1]["eval_count"] == whole.eval_count
    assert client.generate(MODEL, "Name three colours.", options=SURE).response


def test_check_11_and_12_what_is_no_request_is_refused(url: str) -> None:
    assert call(url, "POST", "/api/chat", {"model": "x", "messages": ASKS}).status == 404
    assert call(url, "POST", "/api/chat", {}).status == 400


def test_check_31_an_answer_ends_at_its_bound(client: ollama.Client) -> None:
    told = client.chat(MODEL, ASKS, options={**SURE, "num_predict": 5})
    assert told.done_reason == "length"
    assert told.eval_count is not None
    assert 0 < told.eval_count <= 5


def test_check_32_an_answer_fits_its_schema(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    cat = [{"role": "user", "content": "How many legs has a cat? As JSON."}]
    told = client.chat(MODEL, cat, format=schema, options={**SURE, "num_predict": 60})
    assert isinstance(json.loads(told.message.content or "")["legs"], int)


def test_check_10_and_39_what_loads_by_itself_is_said_to_be_loaded_and_there(
    client: ollama.Client,
) -> None:
    assert client.generate(MODEL, "").done_reason == "load"
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    assert client.pull(MODEL).status == "success"
