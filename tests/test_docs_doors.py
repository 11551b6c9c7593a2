"""docs/DOORS.md says what the doors do: every route, header, field and number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.config import Config
from d8mesh.core.broker.patience import HOPELESS_S
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY, MAX_MODELS
from d8mesh.doors.anthropic.door import anthropic_door
from d8mesh.doors.anthropic.message_request import MESSAGE_REQUEST_FIELDS
from d8mesh.doors.batches.creation import BATCH_PRIORITY
from d8mesh.doors.batches.door import batch_runner, batches_door
from d8mesh.doors.batches.lines import ENDPOINTS, MAX_BATCH_LINES
from d8mesh.doors.batches.uploads import MAX_BATCH_BYTES, MAX_UPLOAD_BYTES
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import MAX_CHATS, MAX_OF_ADDRESS, Chats
from d8mesh.doors.llm.delivered import KEYED_KEPT_S
from d8mesh.doors.llm.streamed import SSE_SILENCE_S
from d8mesh.doors.ollama.routes import ollama_door
from d8mesh.doors.openai.completion_request import MAX_PROMPTS
from d8mesh.doors.openai.described import OpenAiProblem
from d8mesh.doors.openai.embedding_request import MAX_INPUTS
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.doors.openai.responses_request import REFUSED_IN_RESPONSES
from d8mesh.doors.openai.routes import openai_door
from d8mesh.doors.openai.sampling import MAX_CHOICES
from d8mesh.http.codings import MAX_DECODED_BYTES
from d8mesh.http.origins import no_origin
from d8mesh.http.routes import MAX_BODY_BYTES, SMALL_BODY_BYTES
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.groups import MAX_KEY_CHARS
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine

TEXT: Final = (Path(__file__).resolve().parent.parent / "docs" / "DOORS.md").read_text("utf-8")
MIB: Final = 1024 * 1024
#: Headers that say what HTTP always says.
USUAL: Final = {
    "connection",
    "content-length",
    "content-type",
    "date",
    "server",
    "transfer-encoding",
}
USUAL_OF_STREAMS: Final = {"cache-control", "x-accel-buffering"}


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture
def routes(tmp_path: Path) -> set[tuple[str, str]]:
    """All routes of all doors of language models, without a mesh behind them."""
    nothing: Any = None
    mesh: AsyncNode = nothing
    catalogue = ModelCatalogue(mesh)
    chats = Chats(mesh, catalogue)
    config = Config.from_env({"D8_DATA_DIR": str(tmp_path)})
    doors = [
        ollama_door(mesh, chats, catalogue, model_changes="pull"),
        openai_door(chats, catalogue, origins=no_origin),
        anthropic_door(chats, catalogue),
        batches_door(batch_runner(config, mesh, catalogue), openai_problem, OpenAiProblem),
    ]
    return {(route.method, route.rule) for door in doors for route in door.routes}


def test_every_route_stands_there_and_no_other(routes: set[tuple[str, str]]) -> None:
    told = re.findall(r"`(GET|POST|DELETE) (/[^`?]*)`", section("Routes"))
    assert set(told) == routes
    assert len(told) == len(routes)


def test_every_field_of_a_message_is_told() -> None:
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    assert MESSAGE_REQUEST_FIELDS - words == set()
    assert set(REFUSED_IN_RESPONSES) - words == set()
    assert [path for path in ENDPOINTS if f"`{path}`" not in TEXT] == []


@pytest.mark.parametrize(
    "said",
    [
        f"up to {MAX_BODY_BYTES // MIB} MB, also compressed",
        f"{MAX_DECODED_BYTES // MIB} MB unpacked",
        f"up to {MAX_INPUTS:,} texts",
        f"up to {MAX_UPLOAD_BYTES // MIB} MB, of a batch {MAX_BATCH_BYTES // MIB} MB",
        f"up to {MAX_BATCH_LINES:,} lines",
        f"without it {INTERACTIVE_PRIORITY},",
        f"tasks that say nothing (5) and batches ({BATCH_PRIORITY})",
        f"up to {MAX_KEY_CHARS} characters",
        f"With `n` (up to {MAX_CHOICES}) each choice is a task",
        f"all prompts of a completion together are {MAX_PROMPTS} at most",
        f"up to {MAX_MODELS - 1} names, separated by commas",
        f"those that ask for no answer up to {SMALL_BODY_BYTES // MIB} MB",
        f"or when all that have the model were paused or away for {HOPELESS_S:g} s",
        f"comments every {SSE_SILENCE_S:g} s",
        f"{MAX_CHATS:,} may be open at once, {MAX_OF_ADDRESS:,} of one address",
        f"for {KEYED_KEPT_S / 60:g} minutes more",
        f"With an `Idempotency-Key` that is {KEYED_KEPT_S / 60:g} minutes later",
    ],
)
def test_numbers_are_those_of_the_code(said: str) -> None:
    assert said in TEXT


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine()) as made:
        yield made


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("model", [CHAT, "nobody-has-this"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_every_header_of_an_answer_is_told(
    mesh: LlmMesh, path: str, model: str, is_streamed: bool
) -> None:
    body = {
        "model": model,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": is_streamed,
        "never_heard_of": 1,
    }
    told = mesh.post(path, body)
    assert told.status == (200 if model == CHAT else 404)
    words = section("Headers").lower()
    new = {name for name in told.headers if f"`{name}`" not in words}
    assert new - USUAL - USUAL_OF_STREAMS == set()


def test_a_door_is_told_beside_its_tasks(mesh: LlmMesh) -> None:
    body = {"model": CHAT, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    task = mesh.post("/v1/messages", body).headers["x-d8-task"]
    listed = mesh.get("/api/tasks?door=anthropic").json["tasks"]
    assert task in {each["task_id"] for each in listed}
    listed = mesh.get("/api/tasks?door=ollama").json["tasks"]
    assert task not in {each["task_id"] for each in listed}
