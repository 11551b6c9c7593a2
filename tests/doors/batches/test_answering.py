"""Requests of a batch ask and are answered as at OpenAI's door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE, FAILED_STATE
from d8mesh.doors.batches.answering import BatchRequests
from d8mesh.doors.batches.asking import AskedLine, EndedLine, TaskEnd
from d8mesh.doors.batches.lines import ENDPOINTS
from d8mesh.doors.llm.delivered import DeliveredAnswers
from d8mesh.errors import BrokerUnavailableError

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


class Known:
    """Models that are known: all but `missing`."""

    def __init__(self, *, is_away: bool = False) -> None:
        self._is_away = is_away

    async def find(self, name: str) -> Any:
        if self._is_away:
            raise BrokerUnavailableError
        return None if name == "missing" else SimpleNamespace(can=frozenset())

    async def known_names(self) -> list[str]:
        return ["m"]


class Told:
    """Is told what is delivered."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.rests: dict[str, dict[str, Any]] = {}

    def deliver(self, task_id: str, rest: bytes, keep_s: float = 0.0) -> None:
        self.rests[task_id] = msgspec.msgpack.decode(rest)


@pytest.fixture
def told() -> Any:
    found = Told()
    yield found
    found.loop.close()


def requests(told: Told, *, is_away: bool = False) -> BatchRequests:
    return BatchRequests(Known(is_away=is_away), DeliveredAnswers(told, keeps_all=False))


def asked(told: Told, body: dict[str, Any], endpoint: str = CHAT) -> AskedLine:
    return requests(told).asked(endpoint, 4, "c4", body)


def ended(line: AskedLine, state: int, result: dict[str, Any]) -> EndedLine:
    outcome = TaskOutcome(state, msgspec.msgpack.encode(result))
    ends = [TaskEnd(f"t-{n}", task.model, outcome) for n, task in enumerate(line.tasks)]
    return EndedLine(line.number, line.custom_id, line.form, line.error, ends)


def answer(told: Told, line: EndedLine, *, is_away: bool = False) -> dict[str, Any]:
    (found,) = asyncio.run(requests(told, is_away=is_away).answered("0a", [line]))
    return dict(json.loads(found.content))


def test_a_request_is_a_task_of_its_model_alone_that_nobody_listens_to(told: Told) -> None:
    (task,) = asked(told, {"model": "m", "messages": MESSAGES, "stream": True}).tasks
    assert (task.type, task.model) == ("agent_action", "m")
    assert task.data["model_strict"] is True
    assert "pieces" not in task.data


def test_several_choices_are_several_tasks(told: Told) -> None:
    assert len(asked(told, {"model": "m", "messages": MESSAGES, "n": 3}).tasks) == 3


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "/v1/chat/completions": lambda: {"messages": MESSAGES},
    "/v1/completions": lambda: {"prompt": "Hi"},
    "/v1/embeddings": lambda: {"input": "Hi"},
    "/v1/responses": lambda: {"input": "Hi"},
}
OBJECTS = {
    "/v1/chat/completions": "chat.completion",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "list",
    "/v1/responses": "response",
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_is_asked_and_answered_in_its_form(told: Told, endpoint: str) -> None:
    line = asked(told, {"model": "m"} | BODIES[endpoint](), endpoint)
    assert line.error is None
    said: object = [[0.5, 0.5]] if endpoint == "/v1/embeddings" else "Hello"
    found = answer(told, ended(line, COMPLETED_STATE, {"success": True, "output": said}))
    response = found["response"]
    assert (found["custom_id"], response["status_code"], response["request_id"]) == (
        "c4",
        200,
        "t-0",
    )
    assert (response["body"]["object"], response["body"]["model"]) == (OBJECTS[endpoint], "m")


def test_what_is_wrong_with_a_request_is_its_answer(told: Told) -> None:
    line = asked(told, {"model": "m", "messages": "Hi"})
    found = answer(told, ended(line, 0, {}))
    assert found["response"]["status_code"] == 400
    assert found["response"]["body"]["error"]["type"] == "invalid_request_error"


def refused(told: Told, model: str, *, is_away: bool = False) -> dict[str, Any]:
    line = asked(told, {"model": model, "messages": MESSAGES})
    result = {"success": False, "error": "model_strict: not here", "code": "task.invalid"}
    return dict(answer(told, ended(line, FAILED_STATE, result), is_away=is_away)["response"])


def test_a_model_that_nobody_has_is_not_found(told: Told) -> None:
    response = refused(told, "missing")
    assert response["status_code"] == 404
    assert response["body"]["error"]["code"] == "model_not_found"


def test_a_request_that_is_refused_for_something_else_is_so(told: Told) -> None:
    assert refused(told, "m")["status_code"] == 400


def test_where_nobody_knows_the_models_the_failure_is_told_as_it_is(told: Told) -> None:
    assert refused(told, "missing", is_away=True)["status_code"] == 400


def test_a_task_that_somebody_cancelled_is_an_error(told: Told) -> None:
    line = asked(told, {"model": "m", "messages": MESSAGES})
    response = answer(told, ended(line, CANCELLED_STATE, {}))["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (409, "task.cancelled")


def test_a_result_that_is_none_stops_nothing(told: Told) -> None:
    line = asked(told, {"model": "m", "messages": MESSAGES})
    result = {"success": True, "output": "x", "timing": 7}
    assert answer(told, ended(line, COMPLETED_STATE, result))["response"]["status_code"] == 500


def test_what_is_delivered_is_erased_but_for_its_facts(told: Told) -> None:
    found = requests(told)
    line = asked(told, {"model": "m", "messages": MESSAGES})
    result = {"success": True, "output": "secret", "machine": "pi"}
    asyncio.run(found.delivered([ended(line, COMPLETED_STATE, result)]))
    found._delivered.tell()  # at once: else it is told with those of 50 ms
    assert told.rests == {"t-0": {"success": True, "machine": "pi"}}
