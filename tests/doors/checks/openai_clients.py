"""The official client at a mesh's door, and answers as they come over the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import openai

from tests.doors.llm_mesh import CHAT, LlmMesh
from tests.standin.calls import Answered

HELLO: Final[list[dict[str, Any]]] = [{"role": "user", "content": "hello there"}]
DONE: Final = "[DONE]"
LOOK: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "looks at a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


def asynchronous(mesh: LlmMesh) -> Any:
    """Return the other official client, to be used in an ``async with``."""
    return openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="ollama")


@contextmanager
def official(mesh: LlmMesh, **more: Any) -> Iterator[Any]:
    """Have the official client, as anybody makes it; bodies are plain objects here, not typed."""
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="ollama", **more) as client:
        yield client


def chat_sent(mesh: LlmMesh, **fields: Any) -> Answered:
    """Send a chat as it is."""
    return mesh.post("/v1/chat/completions", {"model": CHAT, "messages": HELLO, **fields})


def events_of(answered: Answered) -> list[Any]:
    """Return the data of each event of a stream; what is no event, and no comment, fails."""
    assert answered.status == 200, answered.body
    assert answered.headers["content-type"] == "text/event-stream"
    text = answered.body.decode()
    assert text.endswith("\n\n")
    found: list[Any] = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        if not event.startswith(":"):
            assert event.startswith("data: "), event
            assert "\n" not in event
            data = event.removeprefix("data: ")
            found.append(DONE if data == DONE else json.loads(data))
    return found


def text_of(events: list[Any]) -> str:
    """Return what the chunks of a chat say."""
    deltas = [choice["delta"] for each in events if each != DONE for choice in each["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)
