"""What the lines of an answer mean: parts of a stream put together, or an answer in one piece.

Only a ``finish_reason`` followed by the end is success: ``[DONE]``, or an end of the body as its
framing says. A stream that ends before it is a failure, whatever it has said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from d8mesh.backends.answer_in_pieces import MAX_TEXT_BYTES
from d8mesh.backends.openai.faults import ServiceFault, fault_of
from d8mesh.backends.openai.messages import call_of
from d8mesh.backends.openai.providers import Provider
from d8mesh.backends.streaming import (
    NOTHING_NOW,
    rows_of,
    text_of,
    whole_number,
)
from d8mesh.core.protocol.chat import Ending, FinishReason, Piece, Timing, Usage
from d8mesh.errors import BackendAnswerError, BackendError, BackendTooLargeError, D8Error

#: Calls of tools in one answer; more are an endless loop.
MAX_CALLS: Final = 128
#: Tokens of one request, far more than any context holds.
MAX_TOLD_TOKENS: Final = 1_000_000_000
#: Seconds that a service may say that it took.
MAX_TOLD_S: Final = 1e6
#: A line of ours, as JSON: the body has ended.
END: Final = b'"[END]"'
DONE: Final = b'"[DONE]"'
_REASONS: Final = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
#: Where thoughts stand, in the order in which they are looked for.
_THOUGHTS: Final = ("reasoning_content", "reasoning")
#: Where a choice names the stop sequence that ended it: vLLM, SGLang.
_STOPPED_BY_FIELDS: Final = ("stop_reason", "matched_stop")


def events(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the JSON of each line of an event stream, `DONE`, and `END` when the body ends.

    Lines that are JSON without ``data:`` are taken too: some servers send their errors so.
    """
    for line in lines:
        if line == NOTHING_NOW:
            yield line
            continue
        line = line.strip()
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data.startswith(b"[DONE]"):
                yield DONE
                return
            if data:
                yield data
        elif line.startswith((b"{", b"[")):
            yield line
    yield END


class Assembly:
    """One answer that comes in parts; each call of a tool is told whole.

    Args:
        failed: the error of ours that a failure inside the answer means.
    """

    def __init__(self, provider: Provider, failed: Callable[[ServiceFault], D8Error]) -> None:
        self._provider, self._failed = provider, failed
        self._calls: dict[int, dict[str, Any]] = {}
        self._reason: FinishReason | None = None
        self._usage, self._timing = Usage(), Timing()
        #: the stop sequence that ended it, where the service tells, as it came
        self._stopped_by: dict[str, object] = {}
        self._size = 0

    def piece_of(self, answer: Any) -> Piece:
        """Return what one part says; `TypeError` and the like if it is none.

        Raises:
            BackendError: the service reports an error, or its answer is cut.
        """
        if isinstance(answer, str):
            return self._end(is_told=answer == "[DONE]")
        fault = fault_of(answer)
        if fault is not None:
            raise self._failed(fault)
        self._note(answer)
        choices = rows_of(answer.get("choices"))
        first = next((each for each in choices if not each.get("index")), None)
        if first is None:
            return Piece()
        is_whole = "delta" not in first and ("message" in first)
        said = first.get("message") if is_whole else first.get("delta")
        said = {"content": first.get("text")} if said is None else said
        self._note_reason(first.get("finish_reason"), is_whole=is_whole)
        self._stopped_by |= {
            name: first[name] for name in _STOPPED_BY_FIELDS if isinstance(first.get(name), str)
        }
        is_going_on = self._add_calls(rows_of(said.get("tool_calls")))
        thoughts = next((said[key] for key in _THOUGHTS if said.get(key)), None)
        return Piece(
            text=text_of(said.get("content")),
            thinking=text_of(thoughts),
            logprobs=_logprobs(first.get("logprobs")),
            is_working=is_going_on,
        )

    def _end(self, *, is_told: bool) -> Piece:
        if self._reason is None:
            how = "says that it is done, and not why" if is_told else "ended in the middle"
            raise BackendAnswerError(f"the answer of {self._provider.title} {how}")
        try:
            calls = tuple(call_of(call, call["extras"]) for call in self._calls.values())
        except (ValueError, RecursionError) as error:
            raise BackendAnswerError(
                f"{self._provider.title} calls a tool with arguments that are no JSON object"
            ) from error
        ending = Ending(self._reason, self._usage, self._timing)
        return Piece(tool_calls=calls, ending=ending, extra=self._stopped_by)

    def _note(self, answer: Mapping[str, Any]) -> None:
        """Keep usage and times, in whatever part they stand."""
        groq = answer.get("x_groq")
        usage = answer.get("usage") or (groq.get("usage") if isinstance(groq, dict) else None)
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else 0
            total, prompt = usage.get("total_tokens"), whole_number(usage.get("prompt_tokens"))
            output = whole_number(usage.get("completion_tokens"))
            # Gemini leaves what it thought out of the one, and counts it in the other.
            output = max(output, whole_number(total) - prompt)
            self._usage = usage_of(prompt, output, cached)
            self._timing = _timing_in(usage, ("prompt_time", "completion_time"), 1.0)
        timings = answer.get("timings")
        if isinstance(timings, dict):  # llama.cpp
            self._timing = _timing_in(timings, ("prompt_ms", "predicted_ms"), 0.001)

    def _note_reason(self, reason: Any, *, is_whole: bool) -> None:
        if reason == "content_filter":
            raise BackendError(f"{self._provider.title} withholds the answer (content_filter)")
        if reason:
            self._reason = _REASONS.get(str(reason), FinishReason.STOP)
        elif is_whole and reason == "":  # some leave it empty
            self._reason = FinishReason.STOP

    def _add_calls(self, deltas: tuple[Any, ...]) -> bool:
        for delta in deltas:
            function = delta.get("function") or {}
            call = self._call(delta, is_new=bool(function.get("name")))
            call["id"] = call["id"] or text_of(delta.get("id"))
            call["name"] = call["name"] or text_of(function.get("name"))
            arguments = function.get("arguments")
            if isinstance(arguments, dict):  # some send the object
                arguments = json.dumps(arguments)
            call["arguments"] += text_of(arguments)
            extras = {name: delta[name] for name in self._provider.call_extras if name in delta}
            call["extras"] |= extras
            self._size += len(text_of(arguments))
            if self._size > MAX_TEXT_BYTES:
                raise BackendTooLargeError(
                    f"{self._provider.title} sent more than {MAX_TEXT_BYTES} bytes of calls"
                )
        return bool(deltas)

    def _call(self, delta: Mapping[str, Any], *, is_new: bool) -> dict[str, Any]:
        """Return the call that a part belongs to; its index may be missing, or always 0."""
        index = delta.get("index")
        index = index if type(index) is int and index >= 0 else max(self._calls, default=-1)
        known, told = self._calls.get(index), delta.get("id")
        is_other = known is not None and is_new and known["name"] and told in (None, "")
        is_other = is_other or bool(known and is_new and told and told != known["id"])
        if known is None or is_other:
            index = max(self._calls, default=-1) + 1
            if index >= MAX_CALLS:
                raise BackendTooLargeError(f"{self._provider.title} calls tools without end")
            blank: dict[str, Any] = {"index": index, "id": "", "name": "", "arguments": ""}
            known = self._calls[index] = blank | {"extras": {}}
        return known


def usage_of(prompt: Any, output: Any = 0, cached: Any = 0) -> Usage:
    """Return what a request took, as far as it can be: sums of it are told to the mesh."""
    return Usage(*(min(whole_number(each), MAX_TOLD_TOKENS) for each in (prompt, output, cached)))


def _logprobs(told: Any) -> tuple[Any, ...]:
    return rows_of(told.get("content")) if isinstance(told, dict) else ()


def _timing_in(told: Mapping[str, Any], names: tuple[str, str], unit_s: float) -> Timing:
    prompt_s, output_s = (
        min(max(0, number), MAX_TOLD_S / unit_s) * unit_s
        if isinstance(number := told.get(name), int | float) and number == number
        else 0.0
        for name in names
    )
    return Timing(prompt_s=prompt_s, output_s=output_s, total_s=prompt_s + output_s)
