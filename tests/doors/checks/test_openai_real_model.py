"""Checks of OpenAI's door against a model that really generates: llama.cpp and SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
from pydantic import BaseModel

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from tests.doors.checks.openai_clients import LOOK
from tests.doors.llm_mesh import PATIENCE_S
from tests.end_to_end.processes import until
from tests.real_model import MODEL, needs_model

pytestmark = [needs_model, pytest.mark.timeout(300)]

NO_OLLAMA: Final = "http://127.0.0.1:9"
ASKS: Final = [{"role": "user", "content": "Name three colours."}]
#: The same answer each time.
SURE: Final[dict[str, Any]] = {"model": MODEL, "messages": ASKS, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    settings = {
        "DEEPSEEK_BASE_URL": NO_OLLAMA,
        "D8_MODELS_DIR": "",
        "D8_NO_INSTALL": "1",
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
    }
    with mesh(workers=0) as running:
        running.children.start("worker", "worker", settings=settings)
        until(lambda: ask(running.url, "/api/models")["models"], "the embedded model")
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", timeout=PATIENCE_S) as made:
            yield made


def test_check_22_and_24_a_stream_says_what_a_whole_answer_says(client: Any) -> None:
    whole = client.chat.completions.create(**SURE, max_tokens=24)
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        **SURE, max_tokens=24, stream=True, stream_options=options
    )
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert len(deltas) > 4
    said = "".join(delta.content or "" for delta in deltas)
    assert said == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens > 0


def test_check_25_and_31_an_answer_ends_at_its_bound(client: Any) -> None:
    answer = client.chat.completions.create(**SURE, max_completion_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert 0 < answer.usage.completion_tokens <= 5
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


class Cat(BaseModel):
    """What an answer is to be."""

    name: str
    legs: int


def test_check_32_an_answer_fits_its_schema(client: Any) -> None:
    asked = SURE | {"messages": [{"role": "user", "content": "Tell of a cat, as JSON."}]}
    answer = client.chat.completions.parse(**asked, response_format=Cat, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Cat)


def test_check_27_a_model_without_tools_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support tools") as raised:
        client.chat.completions.create(**SURE, tools=[LOOK], tool_choice="required", max_tokens=4)
    assert raised.value.code == "unsupported_parameter"


def test_without_a_bound_an_answer_ends_by_itself(client: Any) -> None:
    asked = SURE | {"messages": [{"role": "user", "content": "Say hi."}]}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "stop"


def test_several_choices_differ_though_a_seed_is_set(client: Any) -> None:
    asked = SURE | {"temperature": 1.5, "n": 3}
    answer = client.chat.completions.create(**asked, max_tokens=16)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stop_text_ends_an_answer(client: Any) -> None:
    whole = client.chat.completions.create(**SURE, max_tokens=24).choices[0].message.content
    stop = whole.split()[1]
    cut = client.chat.completions.create(**SURE, max_tokens=24, stop=stop)
    assert cut.choices[0].finish_reason == "stop"
    assert stop not in cut.choices[0].message.content


def test_a_text_is_gone_on_with(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "prompt": "Once upon a time",
        "max_tokens": 8,
        "temperature": 0,
        "extra_body": {"raw": True},
    }
    answer = client.completions.create(**asked)
    assert answer.choices[0].text.strip()
    chunks = client.completions.create(**asked, stream=True)
    said = "".join(chunk.choices[0].text for chunk in chunks)
    assert said == answer.choices[0].text


def test_check_30_a_model_that_cannot_see_says_so(client: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": [part]}], max_tokens=4
        )
    assert raised.value.code == "unsupported_parameter"


def test_check_35_an_unknown_model_is_no_surprise(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(**SURE | {"model": "nobody:7b"})
    assert raised.value.code == "model_not_found"
    assert client.models.retrieve(MODEL).id == MODEL
