"""The doors before a model that really generates: llama.cpp in a worker, asked by the clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import anthropic
import openai
import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from tests.doors.llm_mesh import PATIENCE_S
from tests.end_to_end.processes import until
from tests.real_model import MODEL, needs_model

pytestmark = [needs_model, pytest.mark.timeout(300)]

NO_OLLAMA: Final = "http://127.0.0.1:9"
#: The client has no such argument, older ones had; the door takes it.
COLD: Final = {"temperature": 0}
ASKS: Final[Any] = [{"role": "user", "content": "Name three colours."}]


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
def anthropics(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=url, api_key="any", max_retries=0, timeout=PATIENCE_S
    ) as made:
        yield made


@pytest.fixture
def openais(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S
    ) as made:
        yield made


def test_a_message_is_written(anthropics: anthropic.Anthropic) -> None:
    message = anthropics.messages.create(model=MODEL, max_tokens=16, messages=ASKS)
    (block,) = message.content
    assert block.type == "text"
    assert block.text
    assert 0 < message.usage.output_tokens <= 16
    assert message.stop_reason in ("max_tokens", "end_turn")


def test_a_message_grows_to_the_one_that_is_written_whole(
    anthropics: anthropic.Anthropic,
) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 24, "messages": ASKS, "extra_body": COLD}
    whole = anthropics.messages.create(**asked)
    with anthropics.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        grown = stream.get_final_message()
    assert len(texts) > 1
    assert [block.text for block in grown.content] == [block.text for block in whole.content]  # type: ignore[union-attr]
    assert grown.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_ends_a_message(anthropics: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 24, "messages": ASKS, "extra_body": COLD}
    (first,) = anthropics.messages.create(**asked).content
    assert first.type == "text"
    stop = first.text.split()[1]
    (cut,) = anthropics.messages.create(**asked, stop_sequences=[stop]).content
    assert cut.type == "text"
    assert first.text.startswith(cut.text)
    assert stop not in cut.text


def test_a_response_is_bound_to_its_schema(openais: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form: Any = {"format": {"type": "json_schema", "name": "count", "schema": schema}}
    response = openais.responses.create(
        model=MODEL, input="How many legs has a cat?", text=form, max_output_tokens=64
    )
    assert isinstance(json.loads(response.output_text)["n"], int)


def test_a_response_grows_to_the_one_that_is_written_whole(openais: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": ASKS, "max_output_tokens": 24, "temperature": 0}
    whole = openais.responses.create(**asked)
    with openais.responses.stream(**asked) as stream:
        *_, last = list(stream)
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == whole.output_text
    assert last.response.usage is not None
    assert whole.usage is not None
    assert last.response.usage.total_tokens == whole.usage.total_tokens
