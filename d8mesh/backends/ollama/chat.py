"""What a line of Ollama's answer to a chat or a prompt means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.backends.ollama.faults import SERVICE, failed
from d8mesh.backends.streaming import clean_object, rows_of, text_of, whole_number
from d8mesh.core.protocol.chat import Ending, FinishReason, JsonObject, Piece, Timing, Usage
from d8mesh.errors import BackendAnswerError

_NS_PER_S: Final = 1_000_000_000
#: Fields of a line that have a place in a `Piece`, or say what is known.
_PLACED_FIELDS: Final = frozenset(
    {"created_at", "done", "done_reason", "eval_count", "eval_duration", "load_duration",
     "logprobs", "message", "model", "prompt_eval_cached_count", "prompt_eval_count",
     "prompt_eval_duration", "response", "thinking", "tool_calls", "total_duration"}
)  # fmt: skip
_PLACED_OF_MESSAGE: Final = frozenset({"role", "content", "thinking", "tool_calls"})
#: What a line has that holds a text alone.
_PLAIN_LINE: Final = frozenset({"model", "created_at", "message", "done"})
_PLAIN_MESSAGE: Final = frozenset({"role", "content"})
#: Ends of an answer to a request that asked nothing.
_NO_ANSWER: Final = frozenset({"load", "unload"})


class AnswerLines:
    """The lines of one answer; calls of tools are numbered through it, which Ollama may not do."""

    def __init__(self) -> None:
        self._calls = 0

    def piece_of(self, answer: Any) -> Piece:
        """Return what a line says; `TypeError` and the like if it is none of an answer."""
        message = answer.get("message")
        is_plain = answer.keys() == _PLAIN_LINE and message.keys() == _PLAIN_MESSAGE
        if is_plain and answer["done"] is False:  # as nearly all are
            return Piece(text_of(message["content"]))
        if (error := answer.get("error")) is not None:
            raise failed(str(error))
        extra = _unknown(answer, _PLACED_FIELDS)
        if message is None:  # of a prompt
            said, text = answer, answer["response"]
        else:
            said, text = message, message.get("content")
            if unknown := _unknown(message, _PLACED_OF_MESSAGE):
                extra = {**extra, "message": unknown}
        return Piece(
            text_of(text),
            text_of(said.get("thinking")),
            self._numbered(rows_of(said.get("tool_calls"))),
            rows_of(answer.get("logprobs")),
            _ending(answer),
            extra,
        )

    def _numbered(self, calls: tuple[Any, ...]) -> tuple[JsonObject, ...]:
        found: list[JsonObject] = []
        for call in calls:
            function = call["function"]
            found.append({**call, "function": {**function, "index": self._calls}})
            self._calls += 1
        return tuple(found)


def timing_of(answer: Mapping[str, Any]) -> Timing:
    """Return what took how long, by the figures of an answer's end."""

    def seconds(field: str) -> float:
        return whole_number(answer.get(field)) / _NS_PER_S

    return Timing(
        load_s=seconds("load_duration"),
        prompt_s=seconds("prompt_eval_duration"),
        output_s=seconds("eval_duration"),
        total_s=seconds("total_duration"),
    )


def _ending(answer: Mapping[str, Any]) -> Ending | None:
    """Return the end if the line is the last: only ``done: true`` is, and nothing else will do."""
    if answer.get("done") is not True:
        return None
    reason = answer.get("done_reason")
    if reason in _NO_ANSWER:
        raise BackendAnswerError(f"{SERVICE} answered nothing: it says that it did {reason!r}")
    counts = ("prompt_eval_count", "eval_count", "prompt_eval_cached_count")
    return Ending(
        FinishReason.LENGTH if reason == "length" else FinishReason.STOP,
        Usage(*(whole_number(answer.get(count)) for count in counts)),
        timing_of(answer),
    )


def _unknown(answer: Mapping[str, Any], known: frozenset[str]) -> JsonObject:
    found = answer.keys() - known
    return clean_object({key: answer[key] for key in answer if key in found}) if found else {}
