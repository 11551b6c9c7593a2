"""Checks of Ollama's door against a model that really generates: llama.cpp and SmolLM2."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Final, cast

import ollama
import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from tests.end_to_end.processes import until
from tests.real_model import MODEL, needs_model

pytestmark = [needs_model, pytest.mark.timeout(300)]

NO_OLLAMA: Final = "http://127.0.0.1:9"
ASKS: Final = [{"role": "user", "content": "Name three colours."}]
#: The same answer each time.
SURE: Final = {"temperature": 0, "seed": 1, "num_predict": 24}
COLOUR: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
    "required": ["colour"],
}


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


def test_check_05_and_06_the_model_is_listed_shown_and_asked_by_its_name(
    client: ollama.Client,
) -> None:
    (listed,) = client.list().models
    name = str(listed.model)
    assert name.startswith(MODEL)
    assert "completion" in (client.show(name).capabilities or ())
    for spelling in (name, MODEL, MODEL.upper()):
        answer = client.chat(spelling, ASKS, options={**SURE, "num_predict": 2})
        assert answer.model == spelling
        assert answer.message.content


def test_check_08_and_09_a_stream_says_what_a_whole_answer_says(client: ollama.Client) -> None:
    whole = client.chat(MODEL, ASKS, options=SURE)
    *lines, last = client.chat(MODEL, ASKS, options=SURE, stream=True)
    assert len(lines) > 4
    said = "".join(each.message.content or "" for each in [*lines, last])
    assert said == whole.message.content
    assert [each.done for each in lines] == [False] * len(lines)
    assert (last.done, last.done_reason) == (True, whole.done_reason)
    assert last.eval_count == whole.eval_count
    assert last.prompt_eval_count == whole.prompt_eval_count


def test_check_08_a_prompt_is_gone_on_with(client: ollama.Client) -> None:
    whole = client.generate(MODEL, "Once upon a time", options=SURE)
    pieces = list(client.generate(MODEL, "Once upon a time", options=SURE, stream=True))
    assert "".join(each.response or "" for each in pieces) == whole.response != ""


def test_check_10_a_model_of_the_mesh_itself_needs_no_loading(client: ollama.Client) -> None:
    assert client.generate(MODEL, "").done_reason == "load"
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    assert client.chat(MODEL, ASKS, options=SURE).message.content


def test_check_11_an_unknown_model_is_no_surprise(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'x' not found"):
        client.chat("x", ASKS)


def test_check_30_a_model_that_cannot_see_says_so(client: ollama.Client) -> None:
    picture = {"role": "user", "content": "what?", "images": ["aGVsbG8="]}
    with pytest.raises(ollama.ResponseError, match="does not support images") as caught:
        client.chat(MODEL, [picture])
    assert caught.value.status_code == 400


def test_check_31_an_answer_ends_at_its_bound(client: ollama.Client) -> None:
    answer = client.chat(MODEL, ASKS, options={**SURE, "num_predict": 5})
    assert (answer.done_reason, answer.eval_count) == ("length", 5)


def test_check_32_an_answer_fits_its_schema(client: ollama.Client) -> None:
    answer = client.chat(MODEL, ASKS, format=COLOUR, options={**SURE, "num_predict": 60})
    assert '"red"' in str(answer.message.content) or '"green"' in str(answer.message.content)


def test_check_37_who_leaves_in_the_middle_is_answered_no_more(
    url: str, client: ollama.Client
) -> None:
    coming: Any = client.chat(MODEL, ASKS, options={"num_predict": 2000}, stream=True)
    next(coming)
    cast("Generator[ollama.ChatResponse, None, None]", coming).close()
    until(lambda: ask(url, "/api/stats")["tasks"].get("running", 0) == 0, "the model to be free", 5)
    assert client.chat(MODEL, ASKS, options={**SURE, "num_predict": 2}).message.content
