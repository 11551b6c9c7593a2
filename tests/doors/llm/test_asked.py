"""What a request at a door asks, and how it ended."""

from __future__ import annotations

from d8mesh.core.protocol.chat import Completion, Origin
from d8mesh.doors.llm.asked import LlmAnswer

ORIGIN = Origin(service="s", machine="pi", backend="ollama", is_cloud=False)


def test_an_answer_tells_who_gave_it() -> None:
    said = Completion(text="yes", model="m:latest", origin=ORIGIN)
    assert LlmAnswer(task_id="t", model="m", completion=said, result={}).origin == ORIGIN


def test_what_no_model_said_has_no_origin() -> None:
    assert LlmAnswer(task_id="t", model="m", result={"output": "unloaded"}).origin is None
