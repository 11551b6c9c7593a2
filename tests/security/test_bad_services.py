"""LLM services that mean it no good, and answers that are more than text: 41 and 42."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from d8mesh.apps.demo import free_ports
from tests.end_to_end.processes import until
from tests.ollama_server import OllamaServer
from tests.security.abuse import Abused, abused_mesh

MODEL: Final = "qwen2.5:3b"
#: What would colour a terminal, run in a browser, or forge a line of a log.
NASTY: Final = '\x1b[31mred\x1b[0m <script>alert("x")</script> \u202eright\r\nERROR forged'
#: A service that was at fault is asked again after a pause.
AGAIN_S: Final = 90.0


@pytest.fixture(scope="module")
def service() -> Iterator[OllamaServer]:
    with OllamaServer(models=(MODEL,), answer=lambda messages: NASTY) as made:
        yield made


@pytest.fixture(scope="module")
def abused(service: OllamaServer) -> Iterator[Abused]:
    with abused_mesh(settings={"MAX_RETRY_ATTEMPTS": "1"}) as made:
        settings = {
            "DEEPSEEK_BASE_URL": service.url,
            "WORKER_ID": "of-the-service",
            "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        }
        child = made.mesh.children.start("worker", "worker", settings=settings)
        made.llm.workers.append(child)
        until(lambda: _answers(made), "the model is offered")
        yield made


def _ask(abused: Abused) -> tuple[int, dict[str, Any]]:
    body = {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": "hello"}]}
    answered = abused.llm.post("/api/chat", body)
    return answered.status, json.loads(answered.body)


def _answers(abused: Abused) -> bool:
    return _ask(abused)[0] == 200


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "behaviour",
    ["redirect", "not_json", "wrong_shape", "compressed", "deep_json", "endless_line",
     "endless_error", "error"],
)  # fmt: skip
def test_41_a_service_that_misbehaves_costs_its_task_and_the_worker_stays_healthy(
    abused: Abused, service: OllamaServer, behaviour: str
) -> None:
    service.requests.clear()
    service.behaviour = behaviour
    status, told = _ask(abused)
    service.behaviour = "ok"
    assert status >= 500
    assert told["error"]
    assert "/elsewhere" not in {path for path, *_ in service.requests}, "a redirect was followed"
    until(lambda: _answers(abused), "the same worker answers again", AGAIN_S)
    abused.check()


def test_42_what_a_model_says_is_kept_byte_for_byte_and_never_shown_raw(abused: Abused) -> None:
    status, told = _ask(abused)
    assert (status, told["message"]["content"]) == (200, NASTY)
    abused.goes_on()
    for child in (abused.mesh.orchestrator, *abused.llm.workers, *abused.mesh.workers):
        assert "\x1b[31mred" not in "\n".join(child.lines), child.name
    for log in abused.mesh.folder.rglob("*.log"):
        text = log.read_text("utf-8")
        assert "\x1b" not in text
        assert "\nERROR forged" not in text
    assert b"<script>alert" not in abused.llm.get("/").body


def test_42_a_result_over_the_limit_fails_the_task_and_says_so(abused: Abused) -> None:
    text = "x" * (32 * 1024 * 1024 - 60)  # its data fits, the same as a result does not
    task = {"type": "echo", "data": {"text": text}, "max_attempts": 1}
    sent = abused.http.post("/api/tasks/submit", task)
    assert sent.status == 201, sent.body[:300]
    path = f"/api/tasks/{sent.json['task_id']}/wait?timeout_s=60"
    told = abused.http.ask("GET", path).json
    assert told["state"] == "failed"
    assert "result_too_large" in told["result"]["error"]
    abused.check()


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "\x1b]0;owned\x07\x1b[2J", "\u202e\u2066", "{{7*7}}",
     "%s%n\r\n\r\n", "\x00\x01\x7f", "💩" * 100],
    ids=repr,
)  # fmt: skip
def test_42_whatever_a_result_looks_like_it_is_data(abused: Abused, text: str) -> None:
    sent = abused.http.post("/api/tasks/submit", {"type": "echo", "data": {"text": text}})
    told = abused.http.ask("GET", f"/api/tasks/{sent.json['task_id']}/wait?timeout_s=60")
    assert told.json["result"]["output"] == {"text": text}
    assert (told.field("content-type") or "").startswith("application/json")
    logs = [log.read_bytes() for log in abused.mesh.folder.rglob("*.log")]
    assert not any(text.encode() in log for log in logs)
    abused.goes_on()
