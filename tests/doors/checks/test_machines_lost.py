"""A machine is lost before the first word of an answer: another one answers, and nobody sees it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import pytest

from d8mesh.apps.children import RunningCommand
from tests.doors.checks.openai_clients import HELLO
from tests.doors.llm_mesh import PATIENCE_S, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import kill, until
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import Answered
from tests.standin.faults import Kind

PATHS: Final = ("/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses")
SAID: Final = "You asked: hello there"
#: A machine that is silent is left alone for so long: only its worker's end has a request move.
PATIENT: Final[Mapping[str, str]] = {"D8_FIRST_TOKEN_S": "60"}
#: Of the mesh, as the orchestrator has it if nobody says another.
LEASE_S: Final = 10.0
#: A request of a worker that died moves within two seconds; the rest is a loaded machine's.
MOVED_S: Final = LEASE_S / 2

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(fresh=len(PATHS) * 2 + 2, loaded=[])) as made:
        yield made


@contextmanager
def victim(mesh: LlmMesh, model: str) -> Iterator[tuple[OllamaStandin, RunningCommand]]:
    """Have one more machine, the only one with `model` in memory, which never says a word."""
    with machine(fresh=len(PATHS) * 2 + 2, loaded=[model]) as standin:
        standin.fault(Kind.SILENT, model)
        child = mesh.add(standin, settings=PATIENT)
        try:
            mesh.await_models()
            yield standin, child
        finally:
            kill(child.process.pid)
            mesh.standins.remove(standin)
            until(lambda: len(online(mesh)) == 1, "the end of its worker")


def online(mesh: LlmMesh) -> list[Any]:
    services = mesh.models()["services"]
    return [each for each in services if each["models"] and each["state"] == "online"]


def asked(mesh: LlmMesh, path: str, model: str, *, is_streamed: bool) -> Answered:
    body: dict[str, Any] = {"model": model, "stream": is_streamed}
    body |= {"input": HELLO} if path == "/v1/responses" else {"messages": HELLO, "max_tokens": 99}
    return mesh.post(path, body)


def words_of(answered: Answered) -> str:
    """Return what an answer says, whatever its form."""
    assert answered.status == 200, answered.body
    text = answered.body.decode()
    found: list[str] = []
    for line in text.splitlines():
        line = line.removeprefix("data: ")
        if line.startswith("{"):
            found += _texts(json.loads(line))
    return "".join(found)


def _texts(told: Mapping[str, Any]) -> list[str]:
    """Return the texts of one object of any of the doors; what repeats the whole is left out."""
    kind = str(told.get("type", ""))
    if kind.startswith("response.") or kind.startswith("content_block"):
        delta = told.get("delta", "")
        text = delta.get("text", "") if isinstance(delta, dict) else delta
        return [text] if kind in ("response.output_text.delta", "content_block_delta") else []
    if "choices" in told:
        said = [each.get("delta") or each.get("message") or {} for each in told["choices"]]
        return [each.get("content") or "" for each in said]
    if told.get("object") == "response":
        items = [each for each in told["output"] if each["type"] == "message"]
        return [part["text"] for each in items for part in each["content"]]
    if isinstance(told.get("content"), list):
        return [part["text"] for part in told["content"]]
    message = told.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [content] if isinstance(content, str) else []


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_a_machine_that_dies_before_the_first_word_is_replaced_unseen(
    mesh: LlmMesh, path: str, is_streamed: bool
) -> None:
    model = mesh.fresh()
    with victim(mesh, model) as (standin, child), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked, mesh, path, model, is_streamed=is_streamed)
        until(lambda: standin.chats, "its request")
        kill(child.process.pid)
        killed = time.monotonic()
        answered = answer.result(PATIENCE_S)
        assert time.monotonic() - killed < MOVED_S
        assert words_of(answered) == SAID
        if path != "/api/chat" or is_streamed:
            assert b"error" not in answered.body.replace(b'"error":null', b"")


@pytest.mark.slow  # a lease
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
def test_a_worker_that_is_stopped_while_its_request_waits_loses_it_with_its_lease(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    model = mesh.fresh()
    with victim(mesh, model) as (standin, child), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked, mesh, "/api/chat", model, is_streamed=is_streamed)
        until(lambda: standin.chats, "its request")
        os.kill(child.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        assert words_of(answer.result(PATIENCE_S)) == SAID
        assert time.monotonic() - stopped < 2 * LEASE_S
