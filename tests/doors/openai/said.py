"""What models said, for the tests of how it is written."""

from __future__ import annotations

from typing import Any

from d8mesh.core.protocol.chat import Completion, Embeddings, Ending, FinishReason, Usage
from d8mesh.doors.llm.asked import LlmAnswer

CREATED = 1_700_000_000
CALL = {"id": "call_a", "function": {"index": 0, "name": "look", "arguments": {"at": "Köln"}}}
LOGPROB = {
    "token": "hé",
    "logprob": -0.5,
    "bytes": [104, 195, 169],
    "top_logprobs": [{"token": "ho", "logprob": -2.0}],
}


def ending(
    reason: FinishReason = FinishReason.STOP, prompt: int = 3, output: int = 2, cached: int = 0
) -> Ending:
    return Ending(reason, Usage(prompt, output, cached))


def answered(text: str = "", *, task_id: str = "t-0", **more: Any) -> LlmAnswer:
    said = Completion(text=text, model="real:1b", **{"ending": ending(), **more})
    return LlmAnswer(task_id=task_id, model="m", completion=said, result={})


def vectors(*rows: tuple[float, ...], tokens: int = 4) -> LlmAnswer:
    made = Embeddings(vectors=rows, model="e", usage=Usage(tokens))
    return LlmAnswer(task_id="t-0", model="e", embeddings=made, result={})
