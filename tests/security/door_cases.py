"""The doors as who means them no good sees them: a path, and a form of errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.doors.llm_mesh import CHAT
from tests.security.raw_http import Told


@dataclass(frozen=True)
class DoorCase:
    """A door: a path that takes a chat there, one that is not there, and the form of its errors."""

    name: str
    path: str
    nowhere: str
    text_of: Callable[[dict[str, Any]], str]

    def asked(self, content: str = "hello") -> dict[str, Any]:
        """Return what a chat is asked with here."""
        messages = [{"role": "user", "content": content}]
        return {"model": CHAT, "messages": messages, "max_tokens": 5, "stream": False}


def of_rest(body: dict[str, Any]) -> str:
    assert {"error", "code"} <= set(body) <= {"error", "code", "pruned_at"}
    return str(body["error"])


def of_ollama(body: dict[str, Any]) -> str:
    assert set(body) == {"error"}
    return str(body["error"])


def of_openai(body: dict[str, Any]) -> str:
    (error,) = body.values()
    assert set(body) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"]
    return str(error["message"])


def of_anthropic(body: dict[str, Any]) -> str:
    assert (set(body), body["type"]) == ({"type", "error", "request_id"}, "error")
    assert set(body["error"]) == {"type", "message"}
    return str(body["error"]["message"])


DOORS: Final = [
    DoorCase("ollama", "/api/chat", "/api/chat/nowhere", of_ollama),
    DoorCase("openai", "/v1/chat/completions", "/v1/nowhere", of_openai),
    DoorCase("anthropic", "/v1/messages", "/v1/messages/nowhere", of_anthropic),
    DoorCase("batches", "/v1/batches", "/v1/batches/x/nowhere", of_openai),
]


#: The documented REST, and the four.
REST: Final = DoorCase("rest", "/api/tasks/submit", "/api/tasks/submit/nowhere", of_rest)
ALL_DOORS: Final = [REST, *DOORS]


def check_form(told: Told, door: DoorCase, status: int) -> str:
    """Return what is said, if it is said in the door's form and shows nothing of ours."""
    assert told.status == status, told
    assert "Content-Type: application/json" in told.head
    text = door.text_of(told.json)
    assert "Traceback" not in text
    assert ".py" not in text
    return text
